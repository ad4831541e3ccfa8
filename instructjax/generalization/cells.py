r"""Means of the four cells of seen and unseen c and z, and the gaps between them.

| cell | instruction c | input z | |
| --- | --- | --- | --- |
| 0 | seen | seen | as trained |
| 1 | seen | unseen | intra-task |
| 2 | unseen | seen | |
| 3 | unseen | unseen | inter-task |

The levels are those of Xiao and Zhu (2025, arXiv 2501.09223, chapter 4): intra-task, a mean of
the metric P over new inputs under a known instruction, \(\frac{1}{|Z|}\sum_{z'} P(c^*, z', y') >
\epsilon\); inter-task, over new instructions and inputs, \(\frac{1}{|D|}\sum_{(c', z')} P(c', z',
y') > \epsilon\).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.quantiles import student_t_cdf

CELLS = 4
Weights = Literal["micro", "macro"]
Better = Literal["higher", "lower"]


class Gaps(NamedTuple):
    """Differences of cell means, in units of the score; positive where the unseen is worse.

    Attributes:
      intra: m0 - m1, the price of new inputs.
      inter: m0 - m2, the price of new instructions.
      joint: m0 - m3, of both at once.
      interaction: m0 - m1 - m2 + m3: negative where both together cost more than the two alone.
    """

    intra: Array
    inter: Array
    joint: Array
    interaction: Array


# Rows: intra, inter, joint, interaction; columns: cells.
CONTRASTS = ((1, -1, 0, 0), (1, 0, -1, 0), (1, 0, 0, -1), (1, -1, -1, 1))


def cell_weights(
    cell: Int[AnyArray, " N"],
    task_id: Int[AnyArray, " N"] | None = None,
    *,
    weights: Weights = "micro",
    mask: Bool[AnyArray, " N"] | None = None,
) -> Float[Array, "N 4"]:
    """What each score counts in the mean of each cell; columns sum to 1, or to 0 without scores.

    "micro": all scores of a cell count alike (the book's pooled mean). "macro": all tasks of a
    cell count alike, and all scores of a task in it.

    Args:
      cell: 0 to 3.
      task_id: from 0, below N; for "macro".
      weights: see above.
      mask: scores that are there; default: all.

    >>> cell, task = jnp.array([1, 1, 1, 3]), jnp.array([0, 0, 1, 0])
    >>> cell_weights(cell, task, weights="macro")[:, 1].tolist()
    [0.25, 0.25, 0.5, 0.0]
    """
    cell = jnp.asarray(cell)
    there = jnp.ones(cell.shape, bool) if mask is None else jnp.asarray(mask)
    member = (jax.nn.one_hot(cell, CELLS, dtype=bool) & there[:, None]).astype(float)
    if weights == "micro":
        return member / jnp.maximum(member.sum(0), 1)
    if task_id is None:
        raise TypeError("macro weights need task_id")
    per_task = jax.ops.segment_sum(member, jnp.asarray(task_id), num_segments=len(cell))
    tasks = jnp.maximum((per_task > 0).sum(0), 1)
    return member / jnp.maximum(per_task[task_id], 1) / tasks


def cell_means(
    score: Float[AnyArray, " N"],
    cell: Int[AnyArray, " N"],
    task_id: Int[AnyArray, " N"] | None = None,
    *,
    weights: Weights = "micro",
    mask: Bool[AnyArray, " N"] | None = None,
) -> tuple[Float[Array, " 4"], Int[Array, " 4"]]:
    """Mean of each cell, in units of the score, and how many scores are in it.

    A cell without scores has mean 0 and count 0. Arguments as for `cell_weights`.

    >>> score, cell = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([1, 1, 1, 3])
    >>> mean, count = cell_means(score, cell, jnp.array([0, 0, 1, 0]), weights="macro")
    >>> mean.tolist(), count.tolist()
    ([0.0, 0.75, 0.0, 0.0], [0, 3, 0, 1])
    """
    share = cell_weights(cell, task_id, weights=weights, mask=mask)
    there = (share > 0).sum(0)
    return (share * jnp.asarray(score)[:, None]).sum(0), there


def cell_influence(
    score: Float[AnyArray, " N"], share: Float[AnyArray, "N 4"]
) -> Float[Array, "N 4"]:
    """Influence of each score on each cell mean: share x (score - mean).

    Their sums over clusters, squared, make cluster-robust variances, of any function of the
    means too: multiply by its derivative (`influence @ contrast` for a gap).

    Args:
      share: from `cell_weights`.

    >>> cell_influence(jnp.array([1.0, 0.0]), cell_weights(jnp.array([0, 0])))[:, 0].tolist()
    [0.25, -0.25]
    """
    column = jnp.asarray(score)[:, None]
    return jnp.asarray(share) * (column - (share * column).sum(0))


def generalization_gaps(mean: Float[AnyArray, "*shape 4"], *, better: Better = "higher") -> Gaps:
    """Gaps and interaction contrast of cell means.

    Args:
      mean: of each cell, in units of the score.
      better: "lower" where less is better, as of an error rate: gaps are positive where the unseen
        is worse either way.

    >>> gaps = generalization_gaps(jnp.array([0.75, 0.5, 0.25, 0.25]))
    >>> [float(gap) for gap in gaps]  # new inputs cost nothing more under new instructions
    [0.25, 0.5, 0.5, 0.25]
    """
    _check_better(better)
    sign = 1.0 if better == "higher" else -1.0
    gaps = jnp.einsum("kc,...c->k...", sign * jnp.array(CONTRASTS, float), jnp.asarray(mean))
    return Gaps(*gaps)


def threshold_test(
    mean: Float[AnyArray, "*shape"],
    se: Float[AnyArray, "*shape"],
    df: Float[AnyArray, "*shape"],
    epsilon: float,
    *,
    better: Better = "higher",
) -> Float[Array, "*shape"]:
    r"""p-value of "the mean is at most epsilon", one-sided: small where the mean is above it.

    The book's tests mean > epsilon, at both levels, with their uncertainty: the mean over cell 1
    (intra-task) or 3 (inter-task) and its cluster-robust standard error, Student's t.
    An SE of 0 gives 0 or 1: then there is no uncertainty.

    Args:
      mean, se: of a cell, in units of the score; df: degrees of freedom.
      epsilon: the threshold.
      better: "lower" where less is better: then "the mean is at least epsilon" is tested.

    Raises:
      UsageError: epsilon is no finite number.

    >>> p = threshold_test(jnp.array(0.8), jnp.array(0.1), jnp.array(7.0), 0.5)
    >>> round(float(p), 4)  # t = 3 on 7 degrees of freedom
    0.01
    """
    if not math.isfinite(epsilon):
        raise UsageError(f"a threshold of {epsilon}", remedy="give a finite epsilon")
    _check_better(better)
    above = (jnp.asarray(mean) - epsilon) * (1.0 if better == "higher" else -1.0)
    t = jnp.where(se > 0, above / jnp.where(se > 0, se, 1), jnp.where(above > 0, jnp.inf, -jnp.inf))
    return student_t_cdf(-t, jnp.asarray(df))


def _check_better(better: str) -> None:
    if better not in get_args(Better):
        raise UsageError(f"better is {better!r:.40}", remedy='give "higher" or "lower"')
