r"""Scores of candidates from their log-probabilities, as pure functions of arrays.

The last axis runs over the K candidates of one example. `mask` is true where there is a candidate
and false where a list was padded; what stands there has no influence. NumPy arrays give NumPy
arrays in their own precision, JAX arrays give JAX arrays, under jit too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray


def namespace_of(*arrays: object) -> Any:
    """`jax.numpy` if any of the arrays is JAX's, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def divide_by_length(
    log_prob: Float[AnyArray, "*B K"], length: Int[AnyArray, "*B K"]
) -> Float[AnyArray, "*B K"]:
    r"""\(\log \Pr(y \mid c, z) / |y|\): nats a token, a character or a byte, as `length` counts.

    Per token: Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.4; per byte:
    Gao 2021, "Multiple Choice Normalization in LM Evaluation".

    Where a length is 0 (padding, or a y without text) the score is NaN.

    >>> divide_by_length(np.array([-6.0, -4.0]), np.array([3, 1]))
    array([-2., -4.])
    """
    xp = namespace_of(log_prob, length)
    return xp.where(length > 0, log_prob / xp.where(length > 0, length, 1), xp.nan)


def subtract_premise(
    log_prob: Float[AnyArray, "*B K"], premise_log_prob: Float[AnyArray, "*B K"]
) -> Float[AnyArray, "*B K"]:
    r"""\(\log \Pr(y \mid c, z) - \log \Pr(y \mid \text{premise})\), nats.

    Pointwise mutual information of y and the prompt within a domain that the premise names
    (Holtzman et al. 2021, "Surface Form Competition", PMI_DC): how much likelier the prompt makes
    y, and not how common y is.

    >>> subtract_premise(np.array([-2.0, -5.0]), np.array([-1.0, -6.0]))
    array([-1.,  1.])
    """
    return log_prob - premise_log_prob


def calibrate(
    log_prob: Float[AnyArray, "*B K"],
    content_free_log_prob: Float[AnyArray, "*B F K"],
    mask: Bool[AnyArray, "*B K"] | None = None,
) -> Float[AnyArray, "*B K"]:
    r"""Contextual calibration (Zhao et al. 2021, "Calibrate Before Use"), nats.

    \(\hat p\) is the posterior over the candidates, \(\hat p_{cf}\) the mean of the posteriors
    under F inputs without content ("N/A", "[MASK]", ""). The score is
    \(\log(\hat p / \hat p_{cf})\); its softmax is \(W \hat p + b\) with
    \(W = \mathrm{diag}(\hat p_{cf})^{-1}\), \(b = 0\), scaled to sum to 1.

    Args:
      log_prob: log Pr(y | c, z) of every candidate.
      content_free_log_prob: the same with each of the F content-free inputs in place of z.
      mask: where there is a candidate; by default everywhere.

    Returns:
      A score for every candidate, -inf for padding.

    A model that says "yes" to everything three times in four, and now only every second time:

    >>> scores = calibrate(np.log([0.5, 0.5]), np.log([[0.75, 0.25]]))
    >>> posterior(scores).round(2)
    array([0.25, 0.75])
    """
    xp = namespace_of(log_prob, content_free_log_prob, mask)
    shape = content_free_log_prob.shape
    wide = None if mask is None else xp.broadcast_to(mask[..., None, :], shape)
    each = log_posterior(content_free_log_prob, wide)
    if wide is not None:
        each = xp.where(wide, each, 0.0)
    top = each.max(-2, keepdims=True)
    log_mean = xp.log(xp.exp(each - top).mean(-2)) + top[..., 0, :]
    scores = log_posterior(log_prob, mask) - log_mean
    return scores if mask is None else xp.where(mask, scores, -xp.inf)


def log_posterior(
    scores: Float[AnyArray, "*B K"], mask: Bool[AnyArray, "*B K"] | None = None
) -> Float[AnyArray, "*B K"]:
    r"""\(s_k - \log \sum_j \exp s_j\) over the candidates, nats; -inf for padding.

    With scores log Pr(y | c, z) and candidates that are equally likely beforehand, this is the
    log-posterior of y among them. NaN where no candidate has any probability.

    >>> log_posterior(np.array([-1.0, -1.0, 7.0]), np.array([True, True, False])).round(4)
    array([-0.6931, -0.6931,    -inf])
    """
    xp = namespace_of(scores, mask)
    if mask is not None:
        scores = xp.where(mask, scores, -xp.inf)
    top = scores.max(-1, keepdims=True)
    top = xp.where(top == -xp.inf, xp.nan, top)
    shifted = scores - top
    logs = shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))
    return logs if mask is None else xp.where(mask, logs, -xp.inf)


def posterior(
    scores: Float[AnyArray, "*B K"], mask: Bool[AnyArray, "*B K"] | None = None
) -> Float[AnyArray, "*B K"]:
    """Softmax over the candidates: sums to 1, and is 0 for padding.

    >>> posterior(np.log([0.1, 0.3]))
    array([0.25, 0.75])
    """
    return namespace_of(scores, mask).exp(log_posterior(scores, mask))


def order_candidates(
    scores: Float[AnyArray, "*B K"], mask: Bool[AnyArray, "*B K"] | None = None
) -> Int[AnyArray, "*B K"]:
    """Rank of each candidate, 1 the best; of equal scores the first index wins. 0 for padding.

    A score that is NaN comes last.

    >>> order_candidates(np.array([-3.0, -1.0, -1.0, -2.0]))
    array([4, 1, 2, 3])
    """
    xp = namespace_of(scores, mask)
    # NaN sorts behind everything, so padding comes even after what has no probability.
    keys = xp.where(xp.isnan(scores), xp.inf, -scores)
    if mask is not None:
        keys = xp.where(mask, keys, xp.nan)
    order = xp.argsort(xp.argsort(keys, axis=-1, stable=True), axis=-1, stable=True) + 1
    return order if mask is None else xp.where(mask, order, 0)


def find_ties(
    scores: Float[AnyArray, "*B K"], mask: Bool[AnyArray, "*B K"] | None = None
) -> Bool[AnyArray, "*B K"]:
    """Which candidates share the best score with another one, exactly.

    >>> find_ties(np.array([-3.0, -1.0, -1.0]))
    array([False,  True,  True])
    """
    xp = namespace_of(scores, mask)
    scores = xp.where(xp.isnan(scores), -xp.inf, scores)
    valid = xp.ones(scores.shape, bool) if mask is None else mask
    scores = xp.where(valid, scores, -xp.inf)
    best = valid & (scores == scores.max(-1, keepdims=True))
    return best & (best.sum(-1, keepdims=True) > 1)
