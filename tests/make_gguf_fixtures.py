"""Make the GGUF fixtures of the families: their tiny checkpoints through llama.cpp's converter.

    python tests/make_gguf_fixtures.py LLAMA_CPP [NAME ...]

LLAMA_CPP is a folder with `convert_hf_to_gguf.py` and what lies beside it; the source archive of
`llama-cpp-python` holds one. Needs torch. Each checkpoint of `fixtures/families` is read, written
by `instructjax` as a Hugging Face folder, so the converter shows that it takes these too, and
converted from there with matrices in bfloat16, as the checkpoints have them. Files go to
`fixtures/gguf`; they have no vocabulary.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # its own `gguf` before the one installed
    sys.path[:0] = [str(Path(sys.argv[1]) / "gguf-py"), sys.argv[1]]

from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.hf_tensors_out import hf_entries
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors_out import write_entries
from instructjax.models.families.to_hf import config_to_hf

FIXTURES = Path(__file__).parent / "fixtures"
# Converted as the text model of what has eyes as well (Mistral Small 3.1), which has a name of
# its own in llama.cpp.
SEEING = {"mistral-full": "Mistral3ForConditionalGeneration"}


def export(name: str, folder: Path) -> None:
    """Write a checkpoint of the fixtures anew."""
    family, config, weights = open_folder(FIXTURES / name)
    params = load_params(family, config, weights, np.float32)
    write_entries(folder / "model.safetensors", hf_entries(family, config, params))
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    values = {**config_to_hf(family, config), **ids}
    if architecture := SEEING.get(Path(name).name):
        values["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(values))
    vocab = {str(i): i for i in range(config.vocab_size)}  # counted by the converter of Gemma 3
    tokens = {"model": {"vocab": vocab}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


def convert(folder: Path, out: Path) -> None:
    """Run llama.cpp's converter, but for the vocabulary."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    hparams = ModelBase.load_hparams(folder, False)
    kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    kind = getattr(kind, "Ministral3Model", kind)  # which one that only passes on makes

    class WithoutVocabulary(kind):
        model_arch = kind.model_arch

        def set_vocab(self):
            self.gguf_writer.add_tokenizer_model("none")
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    # transformers 5 keeps some options under other names than the converter asks for.
    hparams = {**hparams, **json.loads((folder / "config.json").read_text())}
    with torch.inference_mode():
        WithoutVocabulary(
            folder, gguf.LlamaFileType.MOSTLY_BF16, out, eager=True, hparams=hparams
        ).write()


if __name__ == "__main__":
    (FIXTURES / "gguf").mkdir(exist_ok=True)
    for path in sorted(FIXTURES.glob("families/*")):
        name = str(path.relative_to(FIXTURES))
        wanted = sys.argv[2:]
        if wanted and path.name not in wanted:
            continue
        if "quantization_config" in (path / "config.json").read_text():
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                export(name, Path(folder))
                convert(Path(folder), FIXTURES / "gguf" / f"{path.name}.gguf")
                print("made", path.name)
            except Exception as error:
                print("not made:", path.name, type(error).__name__, str(error)[:200])
