"""The tokenizer that a GGUF file's metadata describes, rebuilt with the `tokenizers` library."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf.constants import TokenType
from tokenizers import AddedToken, decoders, models, normalizers

from instructjax.errors import ModelError
from instructjax.models.checkpoints.gguf_pretokenizers import PreTokenizer, pretokenizer_for
from instructjax.prompts.tokenizer import Tokenizer

_REMEDY = "load the model from its Hugging Face folder"


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Build the tokenizer, with its chat template and its BOS and EOS rules.

    Args:
      metadata: of the file, as `read_gguf_file` gives it.
      path: the file, for messages.

    Raises:
      ModelError: a kind of tokenizer or pre-tokenizer that is not supported, or metadata that is
        missing or contradicts itself.
    """
    fields = _Fields(metadata, path)
    model = fields.get("model", str, None)
    if model == "gpt2":
        pre = pretokenizer_for(fields.get("pre", str, None), path)
        backend, adds_bos = _byte_level(fields, pre), pre.adds_bos
    elif model == "llama":
        backend, adds_bos = _sentencepiece(fields), True
    else:
        raise fields.error(
            f"`tokenizer.ggml.model` = {model!r} is not supported, only 'gpt2' and 'llama'"
        )
    _add_special_tokens(backend, fields)
    ends = [fields.token_id(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id")]
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise fields.error("`tokenizer.chat_template` is not a string")
    names = {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    bos_id = fields.token_id("bos_token_id")
    return Tokenizer(
        backend,
        chat_template=template,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        adds_bos=bos_id is not None and fields.get("add_bos_token", bool, adds_bos),
        special_tokens={
            name: fields.tokens[token_id]
            for name, key in names.items()
            if (token_id := fields.token_id(key)) is not None
        },
        name=path.name,
    )


class _Fields:
    """The `tokenizer.ggml.*` values, each checked."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata = metadata
        self.path = path
        self.tokens: list[str] = self.get("tokens", list)
        if not all(isinstance(token, str) for token in self.tokens):
            raise self.error("`tokenizer.ggml.tokens` are not strings")
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self.vocab[t] != i)
            raise self.error(f"the token {twice!r} has two ids")
        normal = np.full(len(self.tokens), TokenType.NORMAL)
        self.types: np.ndarray = self.get("token_type", np.ndarray, normal)
        if self.types.shape != (len(self.tokens),):
            raise self.error("`tokenizer.ggml.token_type` and `tokens` differ in length")

    def get(self, name: str, kind: type, *default: Any) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            if not default:
                raise self.error(f"`tokenizer.ggml.{name}` is missing")
            return default[0]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"`tokenizer.ggml.{name}` is not of type {kind.__name__}")
        return value

    def token_id(self, name: str) -> int | None:
        value = self.get(name, int, None)
        if value is not None and not 0 <= value < len(self.tokens):
            raise self.error(f"`tokenizer.ggml.{name}` = {value} is no id of the vocabulary")
        return value

    def error(self, message: str) -> ModelError:
        return ModelError(message, file=self.path, remedy=_REMEDY)


def _byte_level(fields: _Fields, pre: PreTokenizer) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2 and its heirs have it."""
    if fields.get("add_space_prefix", bool, False):
        raise fields.error("`tokenizer.ggml.add_space_prefix` is not supported for 'gpt2'")
    merges = [tuple(str(merge).split(" ")) for merge in fields.get("merges", list)]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise fields.error(f"the merge {' '.join(wrong[0])!r} is not of two tokens")
    try:
        model = models.BPE(fields.vocab, merges, ignore_merges=pre.ignore_merges)  # type: ignore[arg-type]
    except Exception as error:  # tokenizers raises plain Exception for a merge of unknown tokens
        raise fields.error(f"`tokenizer.ggml.merges` do not fit the vocabulary: {error}") from error
    backend = tokenizers.Tokenizer(model)
    if pre.normalizer is not None:
        backend.normalizer = pre.normalizer
    backend.pre_tokenizer = pre.build()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: _Fields) -> tokenizers.Tokenizer:
    """SentencePiece BPE with byte fallback, as Llama 1 and 2 have it.

    SentencePiece always joins the neighbours whose union has the greatest score, so the list of
    merges is every way to split a piece in two, ordered by the score of the whole.
    """
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        value = fields.metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and np.size(value) and np.any(value):
            raise fields.error(f"`tokenizer.ggml.{name}` is not supported for 'llama'")
    scores = fields.get("scores", np.ndarray)
    if scores.shape != fields.types.shape or not np.isfinite(scores).all():
        raise fields.error("`tokenizer.ggml.scores` are not one finite number a token")
    ids = np.flatnonzero(fields.types == TokenType.NORMAL).tolist()
    normal = {fields.tokens[i]: i for i in ids}
    lengths = sorted({len(token) for token in normal})  # a token may be a megabyte
    ranked = []
    for token, i in normal.items():
        for cut in itertools.takewhile(len(token).__gt__, lengths):
            left = normal.get(token[:cut])
            right = None if left is None else normal.get(token[cut:])
            if right is not None:
                ranked.append((-float(scores[i]), i, left, right))
    unknown = fields.token_id("unknown_token_id")
    if unknown is None:
        unknown = next(iter(np.flatnonzero(fields.types == TokenType.UNKNOWN).tolist()), None)
    backend = tokenizers.Tokenizer(
        models.BPE(
            fields.vocab,
            [(fields.tokens[left], fields.tokens[right]) for *_, left, right in sorted(ranked)],
            unk_token=None if unknown is None else fields.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = fields.get("add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if prefix else steps
    )
    return backend


def _add_special_tokens(backend: tokenizers.Tokenizer, fields: _Fields) -> None:
    """Tokens cut out of a text whole: control tokens are special, user-defined ones not."""
    kinds = {
        TokenType.CONTROL: True,
        TokenType.UNKNOWN: True,
        TokenType.USER_DEFINED: False,
    }
    for kind, special in kinds.items():
        contents = [fields.tokens[i] for i in np.flatnonzero(fields.types == kind)]
        tokens = [AddedToken(text, special=special, normalized=False) for text in contents if text]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)
