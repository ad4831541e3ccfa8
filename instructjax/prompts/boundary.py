"""From texts to ids in which every byte has its token, and y its span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from instructjax.errors import PromptError
from instructjax.prompts import vocabulary
from instructjax.prompts.tokenizer import Tokenizer

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of the text: of the prompt, or a scored response.

    Attributes:
      text: without the end-of-turn token.
      scored: whether it is a response.
      eos_id: the token that ends it, scored with it; or None.
    """

    text: str
    scored: bool = False
    eos_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """Token ids of a row of segments.

    Attributes:
      ids: int32 [n].
      spans: (start, stop) in ids of each scored segment, its end-of-turn token included.
      starts: int64 [n + 1], where in `data` each token begins; the last is the end of the data.
      data: the text as UTF-8, of all segments and end-of-turn tokens.
      spans_join: whether a token holds characters of both the prompt and a response.
    """

    ids: Int32[np.ndarray, " n"]
    spans: tuple[Span, ...]
    starts: Int64[np.ndarray, " n+1"]
    data: bytes
    spans_join: bool = False


def encode_exact(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Encoded:
    """Encodes each segment on its own: no token holds parts of two.

    The first segment is encoded as the reference tokenizer encodes a prompt, a response as text
    that goes on another, with no space that is not in it.

    Raises:
      PromptError: the ids do not stand for exactly the text, or a response has no tokens.
    """
    parts: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    data: list[bytes] = []
    spans: list[Span] = []
    length = num_bytes = 0
    after_added = True
    for k, segment in enumerate(segments):
        if segment.scored:
            ids = tokenizer.encode_continuation(segment.text)
            places = locate_tokens(tokenizer, ids, segment.text, what="response", at_start=False)
            if len(ids) == 0:
                raise PromptError("the response has no tokens", remedy="give a response")
        else:
            ids = (
                tokenizer.encode(segment.text)
                if k == 0
                else _encode_later(tokenizer, segment.text, after_added=after_added)
            )
            places = locate_tokens(
                tokenizer, ids, segment.text, what="prompt", at_start=k == 0 or after_added
            )
        content = segment.text.encode()
        if segment.eos_id is not None:
            ids = np.append(ids, np.int32(segment.eos_id))
            content += tokenizer.token_bytes(segment.eos_id)
            places = np.append(places, len(content))
        if segment.scored:
            spans.append((length, length + len(ids)))
        if len(ids):
            after_added = int(ids[-1]) in tokenizer.added_tokens
        parts.append(ids)
        starts.append(places[:-1] + num_bytes)
        data.append(content)
        length += len(ids)
        num_bytes += len(content)
    return Encoded(
        ids=np.concatenate(parts),
        spans=tuple(spans),
        starts=np.append(np.concatenate(starts), num_bytes),
        data=b"".join(data),
    )


def encode_joint(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Encoded:
    """Encodes all segments as one string; a token over a join counts in the response.

    The end-of-turn token of the last segment is put behind as an id.

    Raises:
      PromptError: the ids do not stand for exactly the text.
    """
    pieces: list[str] = []
    ranges: list[Span] = []
    num_bytes = 0
    for k, segment in enumerate(segments):
        text = segment.text
        if segment.eos_id is not None and k < len(segments) - 1:
            text += tokenizer.token_text(segment.eos_id)
        size = len(text.encode("utf-8", errors="replace"))
        if segment.scored:
            ranges.append((num_bytes, num_bytes + size))
        pieces.append(text)
        num_bytes += size
    whole = "".join(pieces)
    ids = tokenizer.encode(whole)
    starts = locate_tokens(tokenizer, ids, whole, what="text", at_start=True)
    spans, spans_join = [], False
    for begin, end in ranges:
        # The first token that ends behind the join, and the first that begins behind the response.
        start = int(np.searchsorted(starts[1:], begin, side="right"))
        stop = max(start, int(np.searchsorted(starts[:-1], end, side="left")))
        spans_join |= bool(starts[start] < begin or starts[stop] > end)
        spans.append((start, stop))
    data = whole.encode()
    last = segments[-1].eos_id
    if last is not None:
        ids = np.append(ids, np.int32(last))
        data += tokenizer.token_bytes(last)
        starts = np.append(starts, len(data))
        spans[-1] = (spans[-1][0], len(ids))
    return Encoded(ids=ids, spans=tuple(spans), starts=starts, data=data, spans_join=spans_join)


def locate_tokens(
    tokenizer: Tokenizer,
    ids: Int32[np.ndarray, " n"],
    text: str,
    *,
    what: str,
    at_start: bool,
) -> Int64[np.ndarray, " n+1"]:
    """Where in the text's UTF-8 each token begins: the proof that the ids are the text.

    Two liberties that reference tokenizers take are allowed for: a space of the tokenizer's own
    before a part of the text (SentencePiece), and white space taken in by an added token that
    strips what is beside it.

    Args:
      tokenizer: that made the ids.
      ids: token ids.
      text: what they are to stand for.
      what: "prompt", "response" or "text", for the message.
      at_start: whether the tokenizer may have put a space of its own before the first token.

    Returns:
      int64 [n + 1] byte offsets, the last being the text's length.

    Raises:
      PromptError: the ids stand for something else; says where it begins.
    """
    pieces = [tokenizer.token_bytes(i) for i in ids.tolist()]
    data = text.encode()
    if b"".join(pieces) == data:
        starts = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(piece) for piece in pieces], out=starts[1:])
        return starts
    added = tokenizer.added_tokens
    prefix = tokenizer.has_prefix_space
    places: list[int] = []
    place, k, fresh = 0, 0, at_start
    while k < len(pieces):
        if (token := added.get(int(ids[k]))) is not None:
            places.append(place)
            if token.lstrip and not data.startswith(pieces[k], place):
                place = _skip_space(data, place)
            _check_same(pieces[k], data, place, what)
            place += len(pieces[k])
            if token.rstrip:
                place = _skip_space(data, place)
            k, fresh = k + 1, True
            continue
        stop = next((j for j in range(k, len(pieces)) if int(ids[j]) in added), len(pieces))
        run = b"".join(pieces[k:stop])
        own_space = (
            prefix
            and fresh
            and run.startswith(b" ")
            and not data.startswith(run, place)
            and data.startswith(run[1:], place)
        )
        _check_same(run[own_space:], data, place, what)
        for j in range(k, stop):
            places.append(place)
            place += len(pieces[j]) - (own_space and j == k)
        k, fresh = stop, False
    if place != len(data):
        _raise_difference(b"", data, place, what)
    return np.asarray([*places, place], dtype=np.int64)


def _encode_later(tokenizer: Tokenizer, text: str, *, after_added: bool) -> Int32[np.ndarray, " n"]:
    """Prompt text behind a response, as the reference encodes it in the middle of a string."""
    if not tokenizer.has_prefix_space:
        return tokenizer.encode(text)
    if after_added and vocabulary.prefixes_every_part(tokenizer.backend):
        return tokenizer.encode(text)
    # Only the words before the first added token go on what was before them.
    ids = tokenizer.encode(text)
    first = next((k for k, i in enumerate(ids.tolist()) if i in tokenizer.added_tokens), len(ids))
    if first == len(ids):
        return tokenizer.encode_continuation(text)
    before = text.partition(tokenizer.token_text(int(ids[first])))[0]
    return np.concatenate([tokenizer.encode_continuation(before), ids[first:]])


def _skip_space(data: bytes, place: int) -> int:
    rest = data[place:].decode("utf-8", errors="replace")
    return place + len(rest[: len(rest) - len(rest.lstrip())].encode())


def _check_same(piece: bytes, data: bytes, place: int, what: str) -> None:
    if not data.startswith(piece, place):
        _raise_difference(piece, data, place, what)


def _raise_difference(piece: bytes, data: bytes, place: int, what: str) -> None:
    pairs = zip(piece, data[place:], strict=False)
    same = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(piece), len(data) - place))
    at = len(data[: place + same].decode("utf-8", errors="ignore"))
    text = data.decode()
    written = text[at : at + 12]
    read = piece[same:].decode("utf-8", errors="replace")[:12]
    raise PromptError(
        f"the tokenizer does not keep the {what}: from character {at} on, {written!r} becomes "
        f"{read!r}",
        remedy="write the text as the tokenizer normalizes it (often NFC), or give token ids",
    )
