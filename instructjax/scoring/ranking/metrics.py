"""What a stream of rankings is worth where the right candidates are known."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax.scoring.ranking.calibration import BINS, brier_score, find_bin, log_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMetrics:
    """What rankings are worth where the right candidate is known.

    Attributes:
      num_examples: ranked.
      num_answered: of them with a known answer; the numbers below are means over these, NaN
        where there are none.
      num_ties: examples in which the best score is shared; the first candidate counts as best.
      accuracy: share of best candidates that are right.
      ece: expected calibration error of the best candidate's posterior, 15 bins.
      brier: Brier score over all candidates, 0 to 2.
      log_loss: nats.
    """

    num_examples: int
    num_answered: int
    num_ties: int
    accuracy: float
    ece: float
    brier: float
    log_loss: float


@dataclass(kw_only=True)
class RankTotals:
    """Sums over a stream of ranked examples, in constant memory.

    >>> totals = RankTotals()
    >>> totals.add(np.log([0.25, 0.75]), best=1, tie=False, answer=1)
    >>> totals.add(np.log([0.25, 0.75]), best=1, tie=False, answer=None)
    >>> totals.metrics.accuracy, totals.metrics.num_answered, totals.metrics.num_examples
    (1.0, 1, 2)
    """

    num_examples: int = 0
    num_answered: int = 0
    num_ties: int = 0
    num_correct: int = 0
    brier: float = 0.0
    log_loss: float = 0.0
    gaps: list[float] = field(default_factory=lambda: [0.0] * BINS)

    def add(
        self,
        log_posterior: Float[np.ndarray, " K"],
        *,
        best: int,
        tie: bool,
        answer: int | None,
    ) -> None:
        """Counts one example.

        Args:
          log_posterior: over its candidates, nats.
          best: index of the best.
          tie: whether another one is as good.
          answer: index of the right one, if it is known.
        """
        self.num_examples += 1
        self.num_ties += tie
        if answer is None:
            return
        self.num_answered += 1
        correct = best == answer
        self.num_correct += correct
        at, posterior = np.array([answer]), np.exp(log_posterior)
        self.brier += float(brier_score(posterior[None], at)[0])
        self.log_loss += float(log_loss(log_posterior[None], at)[0])
        confidence = float(posterior[best])
        if math.isnan(confidence):
            self.gaps = [math.nan] * BINS
        else:
            self.gaps[int(find_bin(posterior[[best]], BINS)[0])] += correct - confidence

    def merge(self, other: RankTotals) -> None:
        """Adds the sums over other examples."""
        for name, value in other.to_json().items():
            mine = getattr(self, name)
            both = [a + b for a, b in zip(mine, value, strict=True)] if name == "gaps" else None
            setattr(self, name, mine + value if both is None else both)

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RankTotals:
        """The sums that `to_json` wrote.

        >>> totals = RankTotals(num_examples=2, brier=0.1)
        >>> RankTotals.from_json(totals.to_json()) == totals
        True
        """
        return cls(**values)

    @property
    def metrics(self) -> RankMetrics:
        """Means so far."""
        n = self.num_answered

        def mean(total: int | float) -> float:
            return total / n if n else math.nan

        return RankMetrics(
            num_examples=self.num_examples,
            num_answered=n,
            num_ties=self.num_ties,
            accuracy=mean(self.num_correct),
            ece=mean(sum(map(abs, self.gaps))),
            brier=mean(self.brier),
            log_loss=mean(self.log_loss),
        )
