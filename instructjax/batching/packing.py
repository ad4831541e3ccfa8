"""Requests of any length into few fixed shapes, with little padding and no prefix computed twice.

Several requests share a row, laid out depth first: a prefix that they have in common stands once,
before their own tokens, and `ends` says who sees whom. Row lengths come from a short list, so that
a run compiles a handful of programs whatever its data.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.batching.batch import Batch
from instructjax.batching.prefix_tree import (
    PrefixTree,
    build_tree,
    common_prefix,
    cut_tree,
    input_ids,
    worth_sharing,
)
from instructjax.prompts.request import Request

ROW_LENGTHS = (128, 512, 1024, 1792, 2048)
# Where a long prefix serves many requests, longer rows repeat it less often, and long requests fill
# them better. They run a little slower a token, so they must save more than LONG_ROW_COST of the
# tokens.
LONG_ROWS, LONG_ROW_COST = (4096, 8192, 12288, 16384, 24576, 32768), 1.1
# Queries and keys a tile of attention. Small tiles follow short sequences and branches closely,
# large ones take fewer steps: on CPU they pay from LONG tokens on. Other platforms attend in tiles
# only over rows longer than the standard one.
SMALL_TILE, LARGE_TILE, LONG = 64, 256, 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRow:
    """One row and where its requests went.

    Attributes:
      batch: arrays with B = 1.
      members: each request's index, and the entries of `batch.sources` that hold its scores.
      num_tokens: positions that hold a token; the rest of the row is padding.
    """

    batch: Batch
    members: tuple[tuple[int, np.ndarray], ...]
    num_tokens: int


def row_length_for(tokens: int) -> int:
    """The shortest allowed row that holds `tokens`; beyond the list, powers of two and 3/4 of them.

    >>> row_length_for(100), row_length_for(2048), row_length_for(2049), row_length_for(3073)
    (128, 2048, 3072, 4096)
    """
    for length in ROW_LENGTHS:
        if tokens <= length:
            return length
    whole = 1 << (tokens - 1).bit_length()
    return whole - whole // 4 if tokens <= whole - whole // 4 else whole


def tile_for(length: int) -> int:
    """The tile that attends over a sequence of `length` tokens in the least time.

    >>> tile_for(150), tile_for(1500)
    (64, 256)
    """
    return SMALL_TILE if length <= LONG else LARGE_TILE


def pack(
    requests: Sequence[Request],
    tree: PrefixTree | None = None,
    *,
    apart: Callable[[int], Hashable] | None = None,
    together: int = 1,
    longest: int | None = None,
) -> Iterator[PackedRow]:
    """Rows that together hold every request once, the fullest subtrees first.

    Requests of different tiles never share a row, so that the tile that computes a request does
    not depend on its neighbours.

    Args:
      requests: a window of them; rows do not depend on their order.
      tree: of these requests, if it is at hand.
      apart: requests whose numbers of tokens it tells apart share no row: a model may read them
        differently from the first token on (`instructjax.models.rotary.length_classes`).
      together: rows that are computed at a time, each on a device of its own, for which there must
        be enough of them.
      longest: positions of a row that several requests share beyond the standard ones, if memory
        bounds it; below these, of any row that they share. One that must be longer for a single
        request is shared as far as it goes.
    """
    tree = tree or build_tree(requests)
    kinds = [(tile_for(n), None if apart is None else apart(n)) for n in tree.lengths]
    for tile, kind in sorted(dict.fromkeys(kinds), key=lambda kind: -kind[0]):
        members = [i for i, own in zip(tree.order, kinds, strict=True) if own == (tile, kind)]
        same = len(members) == len(kinds)
        part = tree if same else build_tree(requests, members)
        for places in _plan(part, together, longest):
            yield _fill(requests, part, places, tile)


def _plan(tree: PrefixTree, together: int, most: int | None) -> Iterator[list[int]]:
    """The places in the tree of each row's requests.

    The tree is cut into subtrees that fit a row, coarsely (most sharing) or finely (fullest rows),
    whichever computes the fewest positions.
    """
    standard = min(ROW_LENGTHS[-1], most or ROW_LENGTHS[-1])
    plans = [_place(tree, standard, limit) for limit in (standard, standard // 4, 0)]
    longest = 16 * max(tree.shared, default=0)
    if jax.default_backend() == "cpu":  # elsewhere attention is at its best in standard rows
        longest = max(longest, 8192)
    longest = min(longest, most or longest)
    # A request may need a longer row in any case; others behind its prefix go with it.
    own = row_length_for(max(tree.lengths))
    for length in (*LONG_ROWS, *(n for n in (own, 2 * own) if n > LONG_ROWS[-1])):
        if length * together - length // 2 < tree.num_tokens and length <= longest:
            plans.append(_place(tree, length, length))
    for runs in min(plans, key=_cost):
        yield [place for run, _ in sorted(runs, key=_first) for place in run]


def _first(run: tuple[range, int]) -> int:
    return run[0].start


def _place(tree: PrefixTree, capacity: int, limit: int) -> list[list[tuple[range, int]]]:
    """Best fit, decreasing: each subtree goes to the fullest row that still has room.

    A request that no row of `capacity` holds gets a longer one, and neighbours fill it.
    """

    def allow(length: int) -> int:
        return row_length_for(length) if limit and length > capacity else limit

    room: list[tuple[int, int]] = []
    rows: list[list[tuple[range, int]]] = []
    for run in sorted(cut_tree(tree, allow), key=lambda run: (-run[1], run[0].start)):
        size = run[1]
        at = bisect_left(room, (size, -1))
        if at == len(room):
            left, row = max(row_length_for(size), capacity), len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(run)
        insort(room, (left - size, row))
    return rows


def _cost(rows: list[list[tuple[range, int]]]) -> float:
    total = 0.0
    for runs in rows:
        length = row_length_for(sum(size for _, size in runs))
        total += length * (LONG_ROW_COST if length > ROW_LENGTHS[-1] else 1.0)
    return total


class Row:
    """A row filled sequence by sequence, in depth-first order."""

    def __init__(self, capacity: int) -> None:
        self.tokens, self.positions, self.ends = np.zeros((3, capacity), np.int32)
        self.sources: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.stop = 0
        self.num_scored = 0
        self.entry = np.full(capacity, -1)  # of each token, where it is a target
        self.last: dict[tuple[int, int], int] = {}  # the same of tokens that need no position
        self.path = np.zeros(capacity, np.int32)  # the current sequence's tokens, by depth
        self.depth = 0

    def add(self, ids: np.ndarray, spans: Sequence[Sequence[int]], shared: int) -> np.ndarray:
        """Puts a sequence behind `shared` tokens of the one before it; returns its entries.

        Args:
          ids: of the sequence, the last of which needs no position.
          spans: of those that are scored, where each begins and ends.
          shared: fewer than `ids`.
        """
        self._close(shared)
        size = len(ids) - 1
        own = slice(self.stop, self.stop + size - shared)
        self.tokens[own] = ids[shared:size]
        self.positions[own] = np.arange(shared, size)
        self.path[shared:size] = np.arange(own.start, own.stop)
        self.stop, self.depth = own.stop, size
        entries = [self._score(start, min(stop, size)) for start, stop in spans]
        if spans[-1][1] > size:
            entries.append(self._score_last(int(ids[size])))
        return np.concatenate(entries)

    def _score(self, start: int, stop: int) -> np.ndarray:
        """Entries of the tokens of the current path from depth `start` to `stop`."""
        places = self.path[start:stop]
        entries = self.entry[places]
        new = entries < 0
        entries[new] = self._enter(self.path[start - 1 : stop - 1][new], self.tokens[places][new])
        self.entry[places] = entries
        return entries

    def _score_last(self, target: int) -> np.ndarray:
        """The entry of a token after the current path: nothing follows it, so it has no place."""
        source = int(self.path[self.depth - 1])
        if (source, target) not in self.last:
            entry = self._enter(np.array([source]), np.array([target]))
            self.last[source, target] = int(entry[0])
        return np.array([self.last[source, target]])

    def _enter(self, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        self.sources.append(sources)
        self.targets.append(targets)
        self.num_scored += len(sources)
        return np.arange(self.num_scored - len(sources), self.num_scored)

    def _close(self, depth: int) -> None:
        """No later token sees what is deeper than `depth` on the current path."""
        self.ends[self.path[depth : self.depth]] = self.stop
        self.depth = depth

    def finish(self, tile: int, length: int | None = None, width: int | None = None) -> Batch:
        """The row as a batch of one, arrays of numpy.

        Args:
          tile: see `Batch`.
          length: T; by default an allowed one.
          width: M; by default as T.
        """
        self._close(0)
        used, scored = self.stop, self.num_scored
        length = length or row_length_for(max(used, scored))
        tokens, positions, ends = np.zeros((3, 1, length), np.int32)
        sources, targets = np.zeros((2, 1, width or length), np.int32)
        tokens[0, :used] = self.tokens[:used]
        positions[0, :used] = self.positions[:used]
        ends[0, :used] = self.ends[:used]
        if scored:
            sources[0, :scored] = np.concatenate(self.sources)
            targets[0, :scored] = np.concatenate(self.targets)
        return Batch(
            tokens=tokens,
            positions=positions,
            ends=ends,
            sources=sources,
            targets=targets,
            num_scored=np.array([scored], np.int32),
            tile=tile,
        )


def join_rows(rows: Sequence[Batch]) -> Batch:
    """Finished rows of one shape as one batch, arrays of numpy."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _fill(requests: Sequence[Request], tree: PrefixTree, places: list[int], tile: int) -> PackedRow:
    members = [tree.order[place] for place in places]
    shared = [0]
    for before, after in pairwise(places):
        if after == before + 1:
            shared.append(tree.shared[after])
        else:
            pair = (input_ids(requests[tree.order[place]]) for place in (before, after))
            common = common_prefix(*pair)
            shared.append(worth_sharing(common, tree.lengths[after]))
    row = Row(sum(tree.lengths[place] for place in places) - sum(shared))
    slots = []
    for place, index, common in zip(places, members, shared, strict=True):
        request, size = requests[index], tree.lengths[place]
        slots.append((index, row.add(request.ids[: size + 1], request.spans, common)))
    batch = jax.tree.map(jnp.asarray, row.finish(tile))
    return PackedRow(batch=batch, members=tuple(slots), num_tokens=row.stop)
