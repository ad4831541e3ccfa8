r"""How often the best candidate is the right one, and whether its posterior knows that.

Pure functions of arrays, NumPy or JAX as given, and running totals of the same for streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from instructjax.scoring.normalize import AnyArray, namespace_of

BINS = 15


def brier_score(
    posterior: Float[AnyArray, "N K"],
    answer: Int[AnyArray, " N"],
    mask: Bool[AnyArray, "N K"] | None = None,
) -> Float[AnyArray, " N"]:
    r"""\(\sum_k (p_k - [k = \text{answer}])^2\) of each example: from 0 (sure and right) to 2.

    The original form for several classes (Brier 1950).

    >>> brier_score(np.array([[0.25, 0.75], [0.25, 0.75]]), np.array([1, 0]))
    array([0.125, 1.125])
    """
    xp = namespace_of(posterior, answer, mask)
    right = xp.arange(posterior.shape[-1]) == answer[:, None]
    squares = (posterior - right) ** 2
    return (squares if mask is None else xp.where(mask, squares, 0.0)).sum(-1)


def log_loss(
    log_posterior: Float[AnyArray, "N K"], answer: Int[AnyArray, " N"]
) -> Float[AnyArray, " N"]:
    """-log p of the right candidate of each example, nats.

    >>> log_loss(np.log([[0.25, 0.75]]), np.array([1])).round(4)
    array([0.2877])
    """
    xp = namespace_of(log_posterior, answer)
    return -xp.take_along_axis(log_posterior, answer[:, None], axis=-1)[:, 0]


def expected_calibration_error(
    confidence: Float[AnyArray, " N"], correct: Bool[AnyArray, " N"], *, bins: int = BINS
) -> Float[Array, ""] | np.floating:
    r"""\(\sum_m \frac{|B_m|}{N} |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|\), from 0 to 1.

    \(B_m\) holds the examples whose confidence is in \((\frac{m-1}{M}, \frac{m}{M}]\), M bins of
    equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks"; 15 bins).

    Args:
      confidence: posterior of the best candidate.
      correct: whether the best candidate is the right one.
      bins: M.

    Two answers of which the model is 0.9 sure, one of them wrong, and one sure and right:

    >>> confidence, correct = np.array([0.9, 0.9, 1.0]), np.array([True, False, True])
    >>> expected_calibration_error(confidence, correct).round(4)
    np.float64(0.2667)
    """
    xp = namespace_of(confidence, correct)
    inside = find_bin(confidence, bins)[:, None] == xp.arange(bins)
    gap = xp.where(inside, (correct - confidence)[:, None], 0.0).sum(0)
    return xp.abs(gap).sum() / confidence.shape[0]


def find_bin(confidence: Float[AnyArray, " N"], bins: int) -> Int[AnyArray, " N"]:
    """Index of the bin that each confidence is in; a bin holds its upper edge, not its lower.

    >>> find_bin(np.array([0.0, 0.25, 0.26, 1.0]), 4)
    array([0, 0, 1, 3])
    """
    xp = namespace_of(confidence)
    return xp.clip(xp.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)


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
