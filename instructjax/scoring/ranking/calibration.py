r"""How often the best candidate is the right one, and whether its posterior knows that.

Pure functions of arrays, NumPy or JAX as given.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from instructjax.scoring.ranking.normalize import AnyArray, namespace_of

BINS = 15


def brier_score(
    posterior: Float[AnyArray, "N K"],
    answer: Int[AnyArray, " N"],
    mask: Bool[AnyArray, "N K"] | None = None,
) -> Float[AnyArray, " N"]:
    r"""\(\sum_k (p_k - [k = \text{answer}])^2\) of each example: from 0 (sure and right) to 2.

    The original form for several classes (Brier 1950, "Verification of Forecasts Expressed in Terms
    of Probability").

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
    """-log p of the right candidate of each example, nats (Good 1952, "Rational Decisions").

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
