"""The tokenizer files of a Hugging Face folder, from any tokenizer."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, processors

from instructjax.models.checkpoints.gguf_pretokenizers import PRE_TOKENIZERS
from instructjax.models.checkpoints.sentencepiece_out import sentencepiece_model
from instructjax.prompts.tokenizer import Tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_positions: int, family: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and the template.

    And of SentencePiece's, tokenizer.model: llama.cpp's converter reads that.

    Args:
      tokenizer: what is written; its rule of BOS becomes a post-processor.
      folder: is there already.
      max_positions: tokens that the model takes.
      family: the model's `model_type`.
    """
    backend = copy.deepcopy(tokenizer.backend)
    if family == "qwen2" and not _cuts_like_qwen2(backend):
        warnings.warn(
            "transformers 5 cuts texts as Qwen2 does for all models of its architecture, whatever "
            f"tokenizer.json says: it may give other ids than {tokenizer.name}, and so may "
            "llama.cpp's converter, which asks it",
            stacklevel=3,
        )
    if tokenizer.bos_id is not None and backend.post_processor is None and tokenizer.adds_bos:
        bos = tokenizer.token_text(tokenizer.bos_id)
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", bos, "$B"],
            special_tokens=[(bos, tokenizer.bos_id)],
        )
    backend.save(str(folder / "tokenizer.json"))
    pieces = tokenizer.sentencepiece or sentencepiece_model(tokenizer)
    if pieces is not None:
        (folder / "tokenizer.model").write_bytes(pieces)
    # By this name the converter tells Phi-4's tokenizer from Phi-3's.
    like_gpt2 = family == "phi3" and isinstance(backend.decoder, decoders.ByteLevel)
    names = dict(tokenizer.special_tokens or {})
    added = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(backend.get_added_tokens_decoder().items())
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer" if like_gpt2 else "PreTrainedTokenizerFast",
            "model_max_length": max_positions,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": tokenizer.adds_bos,
            "added_tokens_decoder": added,
            **({} if pieces is None else {"add_prefix_space": tokenizer.has_prefix_space}),
            **names,
            **(
                {}
                if tokenizer.chat_template is None
                else {"chat_template": tokenizer.chat_template}
            ),
        },
    )
    write_json(folder / "special_tokens_map.json", names)
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_bytes(tokenizer.chat_template.encode())


def _cuts_like_qwen2(backend: tokenizers.Tokenizer) -> bool:
    pre = json.loads(backend.to_str())["pre_tokenizer"] or {}
    (regex,) = PRE_TOKENIZERS["qwen2"].splits
    return any(step.get("pattern") == {"Regex": regex} for step in pre.get("pretokenizers", [pre]))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """An object as JSON that people can read."""
    file.write_bytes((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
