"""Requests of any length into few fixed shapes, with little padding.

Several requests share a row, kept apart by `ends`; positions restart. Row lengths come from a
short list, so that a run compiles a handful of programs whatever its data.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from instructjax.batching.batch import Batch
from instructjax.prompts.request import Request

ROW_LENGTHS = (128, 512, 1024, 2048)
# Queries and keys a tile of attention. Small tiles follow short sequences closely, large ones take
# fewer steps: on CPU they are level at LONG tokens. Other platforms do not attend in tiles.
SMALL_TILE, LARGE_TILE, LONG = 32, 256, 448


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One row and where its requests went.

    Attributes:
      batch: arrays with B = 1.
      members: (index of the request, first, last + 1 of its entries in `batch.sources`).
      num_tokens: positions that hold a request's token; the rest of the row is padding.
    """

    batch: Batch
    members: tuple[tuple[int, int, int], ...]
    num_tokens: int


def input_length(request: Request) -> int:
    """Tokens that must be computed: all before the last scored one."""
    return request.spans[-1][1] - 1


def row_length_for(tokens: int) -> int:
    """The shortest allowed row that holds `tokens`; beyond the list, powers of two.

    >>> row_length_for(100), row_length_for(2048), row_length_for(2049)
    (128, 2048, 4096)
    """
    for length in ROW_LENGTHS:
        if tokens <= length:
            return length
    return 1 << (tokens - 1).bit_length()


def tile_for(length: int) -> int:
    """The tile that attends over a sequence of `length` tokens in the least time.

    >>> tile_for(150), tile_for(1000)
    (32, 256)
    """
    return SMALL_TILE if length <= LONG else LARGE_TILE


def pack(requests: Sequence[Request]) -> Iterator[PackedRow]:
    """Rows that together hold every request once, longest requests first.

    Best fit, decreasing: each request goes to the fullest row that still has room. Requests of
    different tiles never share a row, so that no request's program depends on its neighbours but
    for the length of the row.
    """
    lengths = [input_length(request) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: -lengths[i])
    for tile in (LARGE_TILE, SMALL_TILE):
        members = [i for i in order if tile_for(lengths[i]) == tile]
        for row in _place(lengths, members):
            yield _fill(requests, row, tile)


def _place(lengths: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    room: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for i in order:
        capacity = max(row_length_for(lengths[i]), ROW_LENGTHS[-1])
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            left, row = capacity, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


def _fill(requests: Sequence[Request], members: list[int], tile: int) -> PackedRow:
    total = sum(input_length(requests[i]) for i in members)
    length = row_length_for(total)
    tokens, positions, ends, sources, targets = np.zeros((5, 1, length), np.int32)
    start = scored = 0
    slots = []
    for i in members:
        request = requests[i]
        size = input_length(request)
        stop = start + size
        tokens[0, start:stop] = request.ids[:size]
        positions[0, start:stop] = np.arange(size)
        ends[0, start:stop] = stop
        first = scored
        for a, b in request.spans:
            sources[0, scored : scored + b - a] = np.arange(start + a - 1, start + b - 1)
            targets[0, scored : scored + b - a] = request.ids[a:b]
            scored += b - a
        slots.append((i, first, scored))
        start = stop
    batch = Batch(
        tokens=jnp.asarray(tokens),
        positions=jnp.asarray(positions),
        ends=jnp.asarray(ends),
        sources=jnp.asarray(sources),
        targets=jnp.asarray(targets),
        num_scored=jnp.asarray([scored], jnp.int32),
        tile=tile,
    )
    return PackedRow(batch=batch, members=tuple(slots), num_tokens=total)
