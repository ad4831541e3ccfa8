"""A stream of rows cut into chunks that depend on the rows alone.

A chunk is packed, scored and written as a whole. Where one ends is told from the rows from its
start on, so a run that starts at a chunk's end packs, and therefore scores, exactly as a run that
came there from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from instructjax.batching.prefix_tree import common_prefix, input_length
from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.errors import InstructJaxError
from instructjax.prompts.request import Request

CHUNK_ROWS = 4096
CHUNK_TOKENS = 1 << 17
HELD_TOKENS = 16 * CHUNK_TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An example that cannot be scored, and why."""

    example: Example
    error: InstructJaxError


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRow:
    """The requests of one example: candidates outside, contexts inside."""

    row: int
    example: Example
    requests: list[Request]


@dataclass(kw_only=True, slots=True)
class Chunk:
    """Rows `first` to `stop` of the input, encoded.

    Attributes:
      first: index of the first row.
      stop: index after the last row.
      rows: those that can be scored, in order.
      failures: the others, in order.
    """

    first: int
    stop: int
    rows: list[EncodedRow] = field(default_factory=list)
    failures: list[Reject | Failure] = field(default_factory=list)


Encode = Callable[[Any, int], list[Request] | Failure | Reject]


def make_chunks(
    rows: Iterable[Any],
    encode: Encode,
    *,
    done: Mapping[int, int] | None = None,
    most_rows: int | None = None,
) -> Iterator[Chunk]:
    """Cuts a stream into chunks of `CHUNK_ROWS` rows or about `CHUNK_TOKENS` tokens.

    What a request has in common at its start with the one before it, or with its like of the row
    before, counts once, up to `HELD_TOKENS` in all, which bounds memory.

    Args:
      rows: examples, and rejects in their places.
      encode: makes the requests of a row, given its index, or says why there are none; what it
        raises ends the stream.
      done: chunks to pass over, unencoded: the index of the first row to that after the last.
      most_rows: rows of a chunk, if fewer than `CHUNK_ROWS`.
    """
    done = done or {}
    rows = iter(rows)
    place = 0
    while True:
        if place in done:
            stop = done[place]
            for _ in islice(rows, stop - place):
                pass
            place = stop
            continue
        chunk = _read_chunk(rows, encode, place, min(most_rows or CHUNK_ROWS, CHUNK_ROWS))
        if chunk.stop == place:
            return
        yield chunk
        place = chunk.stop


def _read_chunk(rows: Iterator[Any], encode: Encode, first: int, most_rows: int) -> Chunk:
    chunk = Chunk(first=first, stop=first)
    tokens = held = 0
    before: list[Request] = []
    for row in rows:
        made = encode(row, chunk.stop)
        if isinstance(made, list):
            chunk.rows.append(EncodedRow(row=chunk.stop, example=row, requests=made))
            held += sum(map(input_length, made))
            tokens += _count_new(made, before)
            before = made
        else:
            chunk.failures.append(made)
        chunk.stop += 1
        if chunk.stop - first >= most_rows or tokens >= CHUNK_TOKENS or held >= HELD_TOKENS:
            break
    return chunk


def _count_new(requests: list[Request], before: list[Request]) -> int:
    total = 0
    for i, request in enumerate(requests):
        alike = [*requests[max(i - 1, 0) : i], *before[i : i + 1]]
        common = max((common_prefix(other, request) for other in alike), default=0)
        total += input_length(request) - common
    return total
