"""A number with its interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval, in units of the score.

    Attributes:
      estimate: the number.
      low, high: the interval's ends; infinite where there are 0 degrees of freedom.
      se: standard error, robust to clusters of instructions, inputs and tasks.
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
        return f"{self.estimate:z.2f} +- {self.half_width:.2f}"
