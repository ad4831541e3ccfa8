"""What the parts of a `tokenizers.Tokenizer` do to bytes, read from its own description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

from instructjax.errors import ModelError

# Ids go into tables, which a single one of two billion would make too large.
MAX_ID = 2**24
_SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def bytes_of_tokens(backend: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes each token stands for in the middle of a text, by id.

    Knows byte-level alphabets (GPT-2's, where every byte is written as a printable character) and
    SentencePiece-like ones (space written as U+2581, bytes as `<0xNN>`). Added tokens stand for
    their own text. Ids without a token give b"".

    >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "<0x0A>": 1}, []))
    >>> backend.decoder = tokenizers.decoders.Sequence(
    ...     [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback()])
    >>> bytes_of_tokens(backend)
    [b' a', b'\\n']
    """
    steps = [
        step
        for component in (backend.decoder, backend.pre_tokenizer, backend.normalizer)
        for step in _steps(_state(component))
    ]
    kinds = {step["type"] for step in steps}
    byte_level = "ByteLevel" in kinds
    spaces = "Metaspace" in kinds or any(
        step["type"] == "Replace" and _SPACE_MARK in (step.get("content"), *_pattern(step))
        for step in steps
    )
    byte_tokens = "ByteFallback" in kinds or getattr(backend.model, "byte_fallback", False)
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    vocab = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, i in vocab.items():
        if i in added:
            table[i] = added[i].encode()
        elif byte_level and all(char in _BYTE_OF_CHAR for char in token):
            table[i] = bytes(_BYTE_OF_CHAR[char] for char in token)
        elif byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            table[i] = bytes([int(match[1], 16)])
        else:
            table[i] = (token.replace(_SPACE_MARK, " ") if spaces else token).encode()
    return table


def check_ids(backend: tokenizers.Tokenizer) -> None:
    """See that the ids of the vocabulary are each of one token, and none is absurd.

    Of two tokens with one id, `tokenizers` loses either when it copies itself.

    Raises:
      ModelError: they are not.
    """
    token_of: dict[int, str] = {}
    for token, i in backend.get_vocab(with_added_tokens=False).items():
        if i > MAX_ID:
            raise ModelError(f"the token {token!r} has the id {i}, beyond any vocabulary")
        if token_of.setdefault(i, token) != token:
            raise ModelError(f"the tokens {token_of[i]!r} and {token!r} have the same id {i}")


def without_prefix_space(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, made to put no space of its own before a text.

    A `Prepend` normalizer is dropped, `Metaspace` prepends never, `ByteLevel` adds no prefix space.

    Returns:
      A changed copy, or the very same object where nothing is to be changed.
    """
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    normalizer_after, pre_tokenizer_after = _drop_prepend(normalizer), _never_prepend(pre_tokenizer)
    if (normalizer, pre_tokenizer) == (normalizer_after, pre_tokenizer_after):
        return backend
    description = json.loads(backend.to_str())
    description["normalizer"] = normalizer_after
    description["pre_tokenizer"] = pre_tokenizer_after
    return tokenizers.Tokenizer.from_str(json.dumps(description, ensure_ascii=False))


def prefixes_every_part(backend: tokenizers.Tokenizer) -> bool:
    """Whether the space is also put after each added token in a text, not only at its start."""
    for step in (*_steps(_state(backend.normalizer)), *_steps(_state(backend.pre_tokenizer))):
        if step["type"] == "Prepend" or step.get("prepend_scheme") == "always":
            return True
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return True
    return False


def _state(component: Any) -> dict[str, Any] | None:
    return None if component is None else json.loads(component.__getstate__())


def _steps(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The elementary parts of a component, sequences opened."""
    if state is None:
        return
    if state["type"] != "Sequence":
        yield state
    for name in ("decoders", "pretokenizers", "normalizers"):
        for part in state.get(name, ()):
            yield from _steps(part)


def _pattern(step: dict[str, Any]) -> tuple[str, ...]:
    pattern = step.get("pattern", {})
    return tuple(pattern.values()) if isinstance(pattern, dict) else (pattern,)


def _drop_prepend(state: dict[str, Any] | None) -> dict[str, Any] | None:
    if state is None or state["type"] == "Prepend":
        return None
    if state["type"] != "Sequence":
        return state
    parts = [_drop_prepend(part) for part in state["normalizers"]]
    return {**state, "normalizers": [part for part in parts if part is not None]}


def _never_prepend(state: dict[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    if state["type"] == "Metaspace":
        return {**state, "prepend_scheme": "never"}
    if state["type"] == "ByteLevel":
        return {**state, "add_prefix_space": False}
    if state["type"] == "Sequence":
        parts = [_never_prepend(part) for part in state["pretokenizers"]]
        return {**state, "pretokenizers": parts}
    return state


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + k): byte for k, byte in enumerate(others)
    }


_BYTE_OF_CHAR = _byte_of_char()
