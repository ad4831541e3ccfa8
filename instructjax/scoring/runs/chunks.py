"""A stream of rows cut into chunks that depend on the rows alone.

A chunk is packed, scored and written as a whole. Where one ends is told from the rows from its
start on, so a run that starts at a chunk's end packs, and therefore scores, exactly as a run that
came there from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax

from instructjax.batching.prefix_tree import GrowingTree
from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.errors import InstructJaxError
from instructjax.models.model import Model
from instructjax.prompts.request import Request
from instructjax.scoring.engine import WINDOW, WINDOW_TOKENS
from instructjax.scoring.runs.shared_encoding import encode_rows

CHUNK_ROWS = 16384
CHUNK_TOKENS = 1 << 17
CHUNK_PARAMS = 1 << 27
FEWEST_TOKENS = 1 << 13
HELD_TOKENS = WINDOW_TOKENS


def chunk_tokens(model: Model) -> int:
    """Distinct tokens of a chunk, which a stopped run has to compute again.

    `CHUNK_TOKENS`; on CPUs, of which two compute so many of a model of `CHUNK_PARAMS` parameters
    in one to two minutes, fewer of a larger one, down to `FEWEST_TOKENS`.
    """
    if jax.default_backend() != "cpu":
        return CHUNK_TOKENS
    times = max(model.config.num_params // CHUNK_PARAMS, 1)
    return max(CHUNK_TOKENS // times, min(FEWEST_TOKENS, CHUNK_TOKENS))


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
    tokens: int | None = None,
    most_rows: int | None = None,
    top_k: int = 0,
    shared: bool = False,
) -> Iterator[Chunk]:
    """Cuts a stream into chunks of about so many distinct tokens.

    What requests of a chunk have in common at their start counts once, in whatever order they
    come. A chunk in which that is much has more tokens, since the next one computes it anew.
    `HELD_TOKENS` in all, `CHUNK_ROWS` rows and `WINDOW` requests bound memory.

    Args:
      rows: examples, and rejects in their places.
      encode: makes the requests of a row, given its index, or says why there are none; what it
        raises ends the stream.
      done: chunks to pass over, unencoded: the index of the first row to that after the last.
      tokens: distinct ones of a chunk; `CHUNK_TOKENS` by default.
      most_rows: rows of a chunk, if fewer than `CHUNK_ROWS`.
      top_k: alternatives that will be kept of each scored token, an id and a number each.
      shared: whether several processes encode the same rows; see `encode_rows`.
    """
    done = done or {}
    tokens = tokens or CHUNK_TOKENS
    encoded = encode_rows(rows, encode, done=done, shared=shared)
    place = 0
    while True:
        if place in done:
            stop = done[place]
            for _ in islice(encoded, stop - place):
                pass
            place = stop
            continue
        limit = min(most_rows or CHUNK_ROWS, CHUNK_ROWS)
        chunk = _read_chunk(encoded, place, tokens, limit, top_k)
        if chunk.stop == place:
            return
        yield chunk
        place = chunk.stop


def _read_chunk(
    encoded: Iterator[tuple[Any, Any]], first: int, tokens: int, most_rows: int, top_k: int
) -> Chunk:
    chunk = Chunk(first=first, stop=first)
    tree = GrowingTree()
    held = requests = 0
    for row, made in encoded:
        if isinstance(made, list):
            chunk.rows.append(EncodedRow(row=chunk.stop, example=row, requests=made))
            requests += len(made)
            for request in made:
                held += len(request.ids) + 2 * top_k * request.num_tokens
                tree.add(request)
        else:
            chunk.failures.append(made)
        chunk.stop += 1
        full = held >= HELD_TOKENS or requests >= WINDOW or chunk.stop - first >= most_rows
        if full or tree.num_distinct >= _enough(tokens, tree.num_shared):
            break
    return chunk


def _enough(tokens: int, shared: int) -> float:
    """Distinct tokens at which a chunk ends, of which two requests or more begin with `shared`.

    Of instructions in random order, those met twice grow with the square of the rows, so a few of
    them early on mean that more will come. One eighth is computed again where `shared` is
    `tokens`, less where it is less.
    """
    return max(float(tokens), 8 * math.sqrt(tokens * shared))
