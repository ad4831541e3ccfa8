"""The tokenizer of a Hugging Face folder, through transformers and without torch."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructjax.errors import InstructJaxError, ModelError
from instructjax.models.checkpoints.safetensors import read_json
from instructjax.models.checkpoints.sentencepiece_out import fits
from instructjax.prompts.tokenizer import Tokenizer

# Classes of which tokenizer.json says all.
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def tokenizer_from_folder(folder: Path, config: Mapping[str, Any], *, name: str) -> Tokenizer:
    """Load tokenizer, chat template and the ids that end a response.

    Code that comes with the model is never run.

    Args:
      folder: the model's folder.
      config: its config.json, for `eos_token_id` where there is no generation_config.json.
      name: what to call the tokenizer in messages.

    Raises:
      ModelError: there is no tokenizer, it is damaged, or it needs the model's own code.
    """
    try:
        loaded = _auto_tokenizer().from_pretrained(
            str(folder.resolve()),
            trust_remote_code=False,
            local_files_only=True,
            **_brief_config(folder, config),
        )
        found = Tokenizer.from_transformers(loaded, eos_ids=_eos_ids(folder, config), name=name)
    except InstructJaxError as error:
        error.file = error.file or str(folder)
        raise
    except BaseException as error:  # transformers and tokenizers raise nearly everything
        # what panics in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if _lacks_sentencepiece(folder):  # transformers takes it for another kind, then
            raise ModelError(
                "has a tokenizer.model and no tokenizer.json, and the package sentencepiece, which "
                "reads it, is not installed",
                file=folder,
                remedy="`pip install sentencepiece`, or add the tokenizer.json that the model has "
                "elsewhere",
            ) from error
        raise ModelError(
            f"the tokenizer cannot be loaded: {_first_line(error)}",
            file=folder,
            remedy="the folder needs a tokenizer.json and tokenizer_config.json that transformers "
            "can load without code of the model's own",
        ) from error
    file = folder / "tokenizer.model"
    data = file.read_bytes() if file.is_file() else b""
    return replace(found, sentencepiece=data) if fits(data, found.backend) else found


def _auto_tokenizer() -> Any:
    # Importing transformers without torch warns that models are not available; none is wanted.
    logging.getLogger("transformers").addFilter(
        lambda record: not record.getMessage().startswith("PyTorch was not found")
    )
    from transformers import AutoTokenizer

    return AutoTokenizer


def _brief_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to know of the model's configuration where the tokenizer names its class.

    Without it transformers makes the configuration proper, and imports code of models (and
    PyTorch's, where it is installed) for that: a second or two, and 60 MB.
    """
    from transformers import PreTrainedConfig

    file = folder / "tokenizer_config.json"
    class_name = read_json(file).get("tokenizer_class") if file.is_file() else None
    if not class_name:
        return {}
    names = ("model_type", "tokenizer_class", "model_name")
    if class_name in _AS_IT_IS:
        # transformers 5 would cut texts as Qwen2 does for all that have its architecture
        names = names[1:]
    brief = PreTrainedConfig()
    for name in names:
        if isinstance(config.get(name), str):
            setattr(brief, name, config[name])
    return {"config": brief}


def _eos_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    value = read_json(file).get("eos_token_id") if file.is_file() else None
    if value is None:
        file, value = folder / "config.json", config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ModelError(f"`eos_token_id` = {value!r} is no id or list of ids", file=file)
    return tuple(ids)


def _lacks_sentencepiece(folder: Path) -> bool:
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return False
    return importlib.util.find_spec("sentencepiece") is None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
