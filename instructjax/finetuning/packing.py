"""Sequences into rows of one length, as they come: full rows, and none waits for long."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from instructjax.batching.prefix_tree import SHORTEST_SHARED, SortedIds
from instructjax.errors import UsageError
from instructjax.finetuning.batch import shared_prefixes
from instructjax.finetuning.sequences import Sequences

# Sequences at hand beyond those whose turn it is, to fill what these leave of rows.
SPARE = 48

Plan = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The shape of a step.

    Attributes:
      length: positions of a row.
      rows: of a step, over all its micro-batches.
      several: whether a row may hold several sequences.
      share: whether what sequences of a row begin with in common is computed once.
    """

    length: int
    rows: int
    several: bool = True
    share: bool = False


class RowPlans(grain.IterDataset):
    """Plans of steps: for each row the indices of its sequences.

    A step takes the sequences whose turn it is, as many as fill it. Each row begins with the one
    that has waited longest, and takes with it those that share most with it, then the longest that
    still fits with those that share most with that, and so on; short ones that come later fill what
    is left. So rows are full, the order stays close to that of `indices`, and what shares a prefix
    stands together, sorted by its ids. What comes again while it waits, as where epochs meet,
    shares with others that come again.

    Args:
      indices: in the order in which they come; endless or not. The last plans may have empty rows.
      sequences: that they are indices of.
      packing: the shape of a step.
      total: how many plans to give, empty ones at the end if need be; by default as many as
        `indices` fill.

    Raises:
      UsageError: a sequence is longer than a row.

    >>> import numpy as np
    >>> indices = grain.MapDataset.range(4).to_iter_dataset()
    >>> sequences = Sequences(
    ...     ids=np.array([5, 6, 7, 2, 8, 9, 2, 5, 6, 8, 2, 9, 2], np.int32),
    ...     weights=np.array([0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1], np.float32),
    ...     starts=np.array([0, 4, 7, 11, 13]),
    ...     responses=np.ones(4, np.int64),
    ...     places=("1", "2", "3", "4"),
    ...     cells=("",) * 4,
    ... )
    >>> list(RowPlans(indices, sequences, Packing(length=5, rows=2)))
    [((0, 1), (2, 3))]
    >>> list(RowPlans(indices, sequences, Packing(length=5, rows=2, share=True)))
    [((0, 2, 3), (1,))]
    """

    def __init__(
        self,
        indices: grain.IterDataset,
        sequences: Sequences,
        packing: Packing,
        total: int | None = None,
    ) -> None:
        super().__init__(indices)
        longest = int(sequences.sizes.max(initial=0))
        if longest > packing.length:
            raise UsageError(
                f"a sequence takes {longest} positions and a row has {packing.length}",
                remedy="make rows longer",
            )
        self._indices, self._sequences = indices, sequences
        self._packing, self._total = packing, total

    def __iter__(self) -> RowPlanIterator:
        return RowPlanIterator(iter(self._indices), self._sequences, self._packing, self._total)


class RowPlanIterator(grain.DatasetIterator):
    """See `RowPlans`. Its state is that of the indices, those at hand, and the plans given."""

    def __init__(self, indices: Any, sequences: Sequences, packing: Packing, total: int | None):
        super().__init__(indices)
        self._indices, self._sequences, self._total = indices, sequences, total
        self._packing = packing
        self._waiting: list[int] = []  # in the order in which they came
        self._given = 0

    def __next__(self) -> Plan:
        packing = self._packing
        at_hand = self._gather()
        over = not self._waiting if self._total is None else self._given >= self._total
        if over:
            raise StopIteration
        self._given += 1
        rows = [at_hand.take_row(packing) for _ in range(packing.rows)]
        taken = {turn for row in rows for turn in row}
        waiting = self._waiting
        self._waiting = [index for turn, index in enumerate(waiting) if turn not in taken]
        return tuple(tuple(waiting[turn] for turn in row) for row in rows)

    def get_state(self) -> dict[str, Any]:
        return {
            "indices": self._indices.get_state(),
            "waiting": [int(index) for index in self._waiting],
            "given": self._given,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._indices.set_state(state["indices"])
        self._waiting, self._given = list(state["waiting"]), state["given"]

    def _gather(self) -> _AtHand:
        """Those whose turn it is, as many as fill a step, and the spare ones."""
        packing, turn = self._packing, 0
        at_hand = _AtHand(self._sequences, share=packing.share)
        while at_hand.num_positions < packing.rows * packing.length and self._has(turn):
            at_hand.add(self._waiting[turn])
            turn += 1
        at_hand.spare = turn
        while turn < at_hand.spare + max(SPARE, packing.rows) and self._has(turn):
            at_hand.add(self._waiting[turn])
            turn += 1
        return at_hand

    def _has(self, turn: int) -> bool:
        """Whether a sequence waits for that turn, after taking one more where it must."""
        if turn == len(self._waiting):
            try:
                self._waiting.append(int(next(self._indices)))
            except StopIteration:
                return False
        return True


class _AtHand:
    """Sequences to choose from, each known by its turn, in depth-first order of their ids.

    Attributes:
      num_positions: that all of them take if what those of a round begin with in common stands
        once. A sequence's second coming is of the second round.
      spare: the first turn of those that only fill what others leave.
    """

    def __init__(self, sequences: Sequences, *, share: bool) -> None:
        self._sequences, self._share = sequences, share
        self._tree = SortedIds()
        self._turns: list[int] = []  # in the order of the tree
        self._sizes: list[int] = []  # of each turn
        self._scored: list[int] = []
        self._rounds: list[int] = []  # how many earlier ones are the same
        self._came: Counter[bytes] = Counter()
        self._left: dict[int, None] = {}  # turns that no row has taken
        self._by_size: list[tuple[int, int]] = []  # (size, -turn) of these, the oldest last
        self.num_positions, self.spare = 0, math.inf

    def add(self, index: int) -> None:
        """The next sequence."""
        size, turn = int(self._sequences.sizes[index]), len(self._sizes)
        ids = self._sequences.ids_of(index)
        if self._share:
            whole = ids.tobytes()
            self._rounds.append(self._came[whole])
            self._came[whole] += 1
            # Those of a round stand together.
            ids = np.concatenate([self._rounds[-1:], ids[:size]])
        else:
            self._rounds.append(0)
            ids = ids[:0]
        at = self._tree.insert(ids)
        self._turns.insert(at, turn)
        self._sizes.append(size)
        self._scored.append(int(self._sequences.num_scored[index]))
        self._left[turn] = None
        insort(self._by_size, (size, -turn))
        self.num_positions += self._cost(turn, max(self._common(at), self._common(at + 1)))

    def _common(self, at: int) -> int:
        """Tokens that one has in common with the one before it, if that is of its round."""
        return max(self._tree.commons[at] - 1, 0)

    def _cost(self, turn: int, shared: int) -> int:
        """Positions that a sequence takes where so much of it is there already."""
        return self._sizes[turn] - (shared if shared >= SHORTEST_SHARED else 0)

    def take_row(self, packing: Packing) -> list[int]:
        """The turns of a row's sequences, in depth-first order."""
        row: set[int] = set()
        positions = scored = 0

        def take(turn: int, shared: int) -> bool:
            nonlocal positions, scored
            more, new = positions + self._cost(turn, shared), scored + self._scored[turn]
            # A scored token is a position that follows another, or comes last in its sequence.
            if max(more, min(more + len(row) + 1, new)) > packing.length:
                return False
            positions, scored = more, new
            row.add(turn)
            del self._left[turn]
            self._by_size.pop(bisect_left(self._by_size, (self._sizes[turn], -turn)))
            return True

        within = [common for common in self._tree.commons[1:-1] if common]
        common = min(within, default=1) - 1  # of any two of a round
        rounds: set[int] = set()
        turn = next(iter(self._left), None)
        while turn is not None and take(turn, common if self._rounds[turn] in rounds else 0):
            if not packing.several:
                break
            rounds.add(self._rounds[turn])
            self._take_around(turn, common, take)
            turn = self._longest(packing.length - positions, common, rounds)
        places = [at for at, turn in enumerate(self._turns) if turn in row]
        found = [self._turns[at] for at in places]
        for at in reversed(places):
            self._tree.pop(at)
            del self._turns[at]
        return found

    def _take_around(self, turn: int, common: int, take: Callable[[int, int], bool]) -> None:
        """Takes those that share more than all do, those that share most with it first."""
        low = high = self._turns.index(turn)
        before, after = self._common(low), self._common(low + 1)
        while max(before, after) > max(common, SHORTEST_SHARED - 1):
            if before >= after:
                low -= 1
                taken = self._may_take(low) and take(self._turns[low], before)
                before = self._common(low) if taken else min(before, self._common(low))
            else:
                high += 1
                taken = self._may_take(high) and take(self._turns[high], after)
                after = self._common(high + 1) if taken else min(after, self._common(high + 1))

    def _may_take(self, at: int) -> bool:
        turn = self._turns[at]
        return turn < self.spare and turn in self._left

    def _longest(self, room: int, common: int, rounds: set[int]) -> int | None:
        """The longest of those left that fits; a spare one if there is no other.

        Those of a round that the row has share with it, and come before others.
        """
        spare = None
        for known in (True, False):
            size = room + (common if known and common >= SHORTEST_SHARED else 0)
            for at in range(bisect_left(self._by_size, (size + 1,)) - 1, -1, -1):
                turn = -self._by_size[at][1]
                if (self._rounds[turn] in rounds) is not known:
                    continue
                if turn < self.spare:
                    return turn
                spare = turn if spare is None else spare
        return spare


def count_plans(indices: grain.IterDataset, sequences: Sequences, packing: Packing) -> int:
    """How many steps it takes to go through `indices`, which must end."""
    return sum(1 for _ in RowPlans(indices, sequences, packing))


def count_positions(plan: Plan, sequences: Sequences, packing: Packing) -> int:
    """Positions of a step that hold a token."""
    total = sum(int(sequences.sizes[index]) for row in plan for index in row)
    if packing.share:
        ids = [[sequences.ids_of(index) for index in row] for row in plan]
        total -= sum(sum(shared_prefixes(row)) for row in ids)
    return total
