"""SentencePiece's `tokenizer.model`, which llama.cpp's converter reads instead of tokenizer.json.

A file of Protocol Buffers (github.com/google/sentencepiece, `sentencepiece_model.proto`), of which
only the pieces and the few settings that decide ids are written and read.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import tokenizers

from instructjax.prompts.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREFIX = {"type": "Prepend", "prepend": "▁"}


def fits(data: bytes, backend: tokenizers.Tokenizer) -> bool:
    """Whether that is a `tokenizer.model`, and every ordinary piece has the tokenizer's id.

    Added tokens may stand in a piece's place: the converter reads them from elsewhere.
    """
    added = backend.get_added_tokens_decoder()
    try:
        pieces = [_piece(value) for number, value in _fields(data) if number == 1]
    except (ValueError, IndexError, struct.error):
        return False  # of tiktoken, say
    return bool(pieces) and all(
        kind != _NORMAL or i in added or backend.id_to_token(i) == text
        for i, (text, kind) in enumerate(pieces)
    )


def sentencepiece_model(tokenizer: Tokenizer) -> bytes | None:
    """The `tokenizer.model` that gives a text the ids of a tokenizer; None if there is none.

    There is one for BPE with byte fallback on texts whose spaces are "▁", if it joins what gives
    the same piece at the same rank, whatever the halves: SentencePiece knows scores of pieces, not
    of pairs. Scores are minus the order in which pieces are made.
    """
    whole = json.loads(tokenizer.backend.to_str())
    model = whole["model"]
    if model["type"] != "BPE" or not model["byte_fallback"] or not _only_spaces(whole):
        return None
    texts = {i: text for text, i in model["vocab"].items()}
    added = {i: t for i, t in tokenizer.added_tokens.items() if t.content}
    texts |= {i: token.content for i, token in added.items()}
    unknown = model["unk_token"] or "<unk>"
    types = [_kind(texts.get(i), i, added, unknown) for i in range(max(texts) + 1)]
    normal = {texts[i] for i, kind in enumerate(types) if kind == _NORMAL}
    ranks = _ranks(model["merges"], normal)
    if ranks is None or types.count(_UNKNOWN) != 1 or types.count(_BYTE) != 256:
        return None
    pieces = []
    for i, kind in enumerate(types):
        text = texts.get(i, f"[PAD{i}]")
        if kind == _USER_DEFINED:  # matched where spaces are "▁" already
            text = text.replace(" ", "▁")
        score = -float(ranks.get(text, len(ranks) + i)) if kind == _NORMAL else 0.0
        piece = _text(1, text) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        pieces.append(_bytes(1, piece))
    trainer = _number(3, _BPE) + _number(35, 1) + _number(4, len(types))
    special = {**(tokenizer.special_tokens or {}), "unk_token": unknown}
    for field, name in enumerate(("unk_token", "bos_token", "eos_token", "pad_token"), 45):
        trainer += _text(field, special[name]) if name in special else b""
    spaces = _number(3, tokenizer.has_prefix_space) + _number(4, 0) + _number(5, 1)
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, _text(1, "identity") + spaces)


def _only_spaces(whole: dict[str, Any]) -> bool:
    """Whether nothing but spaces is rewritten before texts are cut, as SentencePiece's are."""
    normalizer, pre = whole["normalizer"], whole["pre_tokenizer"]
    steps = (
        normalizer["normalizers"] if normalizer and "normalizers" in normalizer else [normalizer]
    )
    if pre is not None and pre["type"] == "Metaspace":
        return steps == [None] and pre["replacement"] == "▁" and not pre.get("split", False)
    # Gemma cuts at spaces where there are none left.
    at_spaces = pre is None or (pre["type"] == "Split" and pre["pattern"] == {"String": " "})
    return at_spaces and steps in ([_SPACES], [_PREFIX, _SPACES])


def _kind(text: str | None, i: int, added: dict[int, Any], unknown: str) -> int:
    if text is None:
        return _UNUSED
    if text == unknown:
        return _UNKNOWN
    if i in added:
        return _CONTROL if added[i].special else _USER_DEFINED
    return _BYTE if _BYTE_PIECE.fullmatch(text) else _NORMAL


def _ranks(merges: list[Any], normal: set[str]) -> dict[str, int] | None:
    """The order of the pieces that are joined; None if it depends on the halves.

    >>> _ranks(["a b", "ab c", "a bc", "b c"], {"a", "b", "c", "ab", "bc", "abc"})
    {'ab': 0, 'abc': 1, 'bc': 2}
    >>> _ranks(["a b", "ab c", "b c"], {"a", "b", "c", "ab", "bc", "abc"}) is None
    True
    """
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    pairs = [pair for pair in pairs if {*pair, "".join(pair)} <= normal]
    every = {
        (piece[:cut], piece[cut:])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    }
    ranks: dict[str, int] = {}
    last = ""
    for pair in pairs:
        whole = "".join(pair)
        if whole != last and whole in ranks:
            return None
        last = whole
        ranks.setdefault(whole, len(ranks))
    return ranks if set(pairs) == every else None


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value % 128 + 128)
        value //= 128
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field * 8) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field * 8 + 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message.

    >>> list(_fields(_text(1, "a") + _number(3, 300)))
    [(1, b'a'), (3, 300)]
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of type {kind}")
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + size > len(data):
            raise ValueError("a field is cut off")
        yield number, data[at : at + size]
        at += size


def _piece(message: Any) -> tuple[str, int]:
    """Text and type; the type is left out where it is the ordinary one."""
    if not isinstance(message, bytes):
        raise ValueError("a piece is no message")
    fields = dict(_fields(message))
    return fields[1].decode() if isinstance(fields.get(1), bytes) else "", fields.get(3, _NORMAL)
