"""Sequences into rows of one length, as they come: full rows, and none waits for long."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from instructjax.errors import UsageError

# Sequences at hand to choose from, in steps' worth of tokens, and at least this many.
LOOKAHEAD, LEAST_AT_HAND = 2, 48

Plan = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The shape of a step.

    Attributes:
      length: positions of a row.
      rows: of a step, over all its micro-batches.
      several: whether a row may hold several sequences.
    """

    length: int
    rows: int
    several: bool = True


class RowPlans(grain.IterDataset):
    """Plans of steps: for each row the indices of its sequences.

    Each row begins with the sequence that has waited longest, and takes in turn the longest of
    those at hand that still fits. So rows are full, and the order stays close to that of `indices`.

    Args:
      indices: in the order in which they come; endless or not. The last plans may have empty rows.
      sizes: positions that each sequence takes.
      packing: the shape of a step.
      total: how many plans to give, empty ones at the end if need be; by default as many as
        `indices` fill.

    >>> packing = Packing(length=8, rows=1)
    >>> indices = grain.MapDataset.range(4).to_iter_dataset()
    >>> list(RowPlans(indices, np.array([5, 6, 3, 2]), packing))
    [((0, 2),), ((1, 3),)]
    """

    def __init__(
        self,
        indices: grain.IterDataset,
        sizes: np.ndarray,
        packing: Packing,
        total: int | None = None,
    ) -> None:
        super().__init__(indices)
        if len(sizes) and int(sizes.max()) > packing.length:
            raise UsageError(
                f"a sequence takes {sizes.max()} positions and a row has {packing.length}",
                remedy="make rows longer",
            )
        self._indices, self._sizes, self._packing, self._total = indices, sizes, packing, total

    def __iter__(self) -> RowPlanIterator:
        return RowPlanIterator(iter(self._indices), self._sizes, self._packing, self._total)


class RowPlanIterator(grain.DatasetIterator):
    """See `RowPlans`. Its state is that of the indices, those at hand, and the plans given."""

    def __init__(self, indices: Any, sizes: np.ndarray, packing: Packing, total: int | None):
        super().__init__(indices)
        self._indices, self._sizes, self._packing, self._total = indices, sizes, packing, total
        self._waiting: dict[int, int] = {}  # turn -> index, in the order in which they came
        self._by_size: list[tuple[int, int]] = []  # (size, -turn), so that the oldest comes last
        self._tokens = self._turn = self._given = 0
        self._ended = False

    def __next__(self) -> Plan:
        self._fill_up()
        over = not self._waiting if self._total is None else self._given >= self._total
        if over:
            raise StopIteration
        self._given += 1
        return tuple(tuple(self._take_row()) for _ in range(self._packing.rows))

    def get_state(self) -> dict[str, Any]:
        return {
            "indices": self._indices.get_state(),
            "waiting": [int(index) for index in self._waiting.values()],
            "given": self._given,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._indices.set_state(state["indices"])
        self._waiting, self._by_size = {}, []
        self._tokens = self._turn = 0
        self._ended = False
        self._given = state["given"]
        for index in state["waiting"]:
            self._add(index)

    def _fill_up(self) -> None:
        wanted = LOOKAHEAD * self._packing.rows * self._packing.length
        least = max(LEAST_AT_HAND, self._packing.rows)
        while not self._ended and (self._tokens < wanted or len(self._waiting) < least):
            try:
                self._add(int(next(self._indices)))
            except StopIteration:
                self._ended = True

    def _add(self, index: int) -> None:
        size = int(self._sizes[index])
        insort(self._by_size, (size, -self._turn))
        self._waiting[self._turn] = index
        self._tokens += size
        self._turn += 1

    def _take_row(self) -> Iterator[int]:
        left = self._packing.length
        while self._waiting:
            if left == self._packing.length:
                turn = next(iter(self._waiting))
                at = bisect_left(self._by_size, (int(self._sizes[self._waiting[turn]]), -turn))
            else:
                at = bisect_left(self._by_size, (left + 1,)) - 1
                if at < 0:
                    return
            size, minus = self._by_size.pop(at)
            left -= size
            self._tokens -= size
            yield self._waiting.pop(-minus)
            if not self._packing.several:
                return


def count_plans(indices: grain.IterDataset, sizes: np.ndarray, packing: Packing) -> int:
    """How many steps it takes to go through `indices`, which must end."""
    return sum(1 for _ in RowPlans(indices, sizes, packing))


def useful_share(plans: Sequence[Plan], sizes: np.ndarray, packing: Packing) -> float:
    """Positions that hold a token, of all that are computed.

    >>> useful_share([((0, 1),), ((2,),)], np.array([3, 4, 8]), Packing(length=8, rows=1))
    0.9375
    """
    used = sum(int(sizes[index]) for plan in plans for row in plan for index in row)
    return used / max(len(plans) * packing.rows * packing.length, 1)
