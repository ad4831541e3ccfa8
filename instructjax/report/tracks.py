"""Dots with whiskers on a common scale, as shares of its width: a page draws them, at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear scale.

    Attributes:
      low, high: its ends.
      ticks: round values within.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a value is, 0 to 100 per cent of the width; beyond the ends, at the end.

        >>> Scale(low=-1.0, high=1.0, ticks=()).place(0.5)
        75.0
        """
        if math.isnan(value):
            return 0.0
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * share, 3)


def make_scale(values: Sequence[float], *, include: Sequence[float] = (0.0,)) -> Scale:
    """A scale on which all finite values fit, with a margin and about four round ticks.

    >>> make_scale([0.02, 0.41]).ticks
    (0.0, 0.2, 0.4)
    """
    finite = [x for x in (*values, *include) if math.isfinite(x)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 4.5)
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = tuple(round(k * step, 10) for k in range(first, last + 1))
    return Scale(low=low, high=high, ticks=ticks)
