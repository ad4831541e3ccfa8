"""A number with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval, in units of the score.

    Attributes:
      estimate: the number.
      low, high: the interval's ends; infinite where there are 0 degrees of freedom, and where the
        scores do not vary and have no bounds: they do not say how far others would.
      se: standard error, robust to clusters of instructions, inputs and tasks; 0 where the scores
        do not vary.
      df: degrees of freedom of Student's t.
      contrast: what it is of the cell means m0 to m3, as "m0 - m1".
    """

    estimate: float
    low: float
    high: float
    se: float
    df: float
    contrast: str

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """The number to two digits of the half width of its interval.

        >>> str(Estimate(estimate=0.41, low=0.35, high=0.47, se=0.03, df=9.0, contrast="m0"))
        '0.410 +- 0.060'
        """
        if math.isfinite(self.half_width):
            decimals = decimals_for(self.half_width)
            return f"{self.estimate:z.{decimals}f} +- {self.half_width:.{decimals}f}"
        return f"{self.estimate:.4g} ({self.why_unbounded})"

    @property
    def why_unbounded(self) -> str:
        """Why there is no interval, where there is none."""
        return "no variation" if self.se == 0 and self.df > 0 else "no interval"


def decimals_for(half_width: float) -> int:
    """Decimals that show two digits of half an interval's width, six at most.

    >>> decimals_for(0.034), decimals_for(2.0), decimals_for(20.0), decimals_for(0.0)
    (3, 1, 0, 3)
    """
    if not math.isfinite(half_width) or half_width <= 0:
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(half_width))))
