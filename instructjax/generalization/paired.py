r"""Models, or fine-tuning strategies, compared on the same scores, with many comparisons in mind.

On the same instructions and inputs, the difference of two models is far surer than the two means:
what is hard for both cancels (Miller 2024, arXiv 2411.00640: Var(A - B) = Var A + Var B - 2 Cov).
Adjusted p-values: Holm (1979) keeps the chance of any false finding below alpha whatever the
dependence, Benjamini and Hochberg (1995) the expected share of false findings; max-T (Westfall
and Young 1993; Romano and Wolf 2005) is Holm's aim with the dependence taken from a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import mean_influence, multiway_cluster_se, t_interval
from instructjax.generalization.quantiles import student_t_cdf


class Comparison(NamedTuple):
    """Attributes: mean difference, standard error, degrees of freedom, interval, two-sided p."""

    difference: Array
    se: Array
    df: Array
    low: Array
    high: Array
    p_value: Array


def compare_paired(
    score_a: Float[AnyArray, " N"],
    score_b: Float[AnyArray, " N"],
    ids: Sequence[Int[AnyArray, " N"]],
    mask: Bool[AnyArray, " N"] | None = None,
    *,
    level: float = 0.95,
) -> Comparison:
    """Mean of a - b over the records both have, clustered in one or several ways.

    Args:
      score_a, score_b: of the same (c, z), record by record.
      ids: one array a way, ids from 0 and below N.
      mask: records that both have; default: all.
      level: of the interval.

    >>> a, b = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0, 0.0])
    >>> found = compare_paired(a, b, [jnp.arange(4)])
    >>> float(found.difference), round(float(found.se), 4), float(found.df)  # sd / sqrt(4)
    (0.5, 0.2887, 3.0)
    """
    there = jnp.ones(score_a.shape[0], bool) if mask is None else jnp.asarray(mask)
    apart = jnp.where(there, jnp.asarray(score_a) - score_b, 0)
    mean = apart.sum() / jnp.maximum(there.sum(), 1)
    se, df = multiway_cluster_se(mean_influence(apart, there), ids, there)
    low, high = t_interval(mean, se, df, level)
    t = jnp.where(se > 0, jnp.abs(mean) / jnp.where(se > 0, se, 1), jnp.inf * jnp.abs(mean))
    t = jnp.where(mean == 0, 0.0, t)
    return Comparison(mean, se, df, low, high, 2 * student_t_cdf(-t, df))


def holm(p_value: Float[AnyArray, " K"]) -> Float[Array, " K"]:
    """Adjusted p-values by Holm's step-down procedure; NaN stays, and does not count.

    >>> [round(float(p), 3) for p in holm(jnp.array([0.01, 0.04, 0.03]))]
    [0.03, 0.06, 0.06]
    """
    p = jnp.asarray(p_value)
    order, count = jnp.argsort(p), (~jnp.isnan(p)).sum()  # NaN last
    left = jnp.maximum(count - jnp.arange(len(p)), 1)
    return _put_back(p, order, jax.lax.cummax(jnp.nan_to_num(p[order], nan=1.0) * left))


def benjamini_hochberg(p_value: Float[AnyArray, " K"]) -> Float[Array, " K"]:
    """Adjusted p-values that control the false discovery rate; NaN stays, and does not count.

    >>> [round(float(p), 3) for p in benjamini_hochberg(jnp.array([0.01, 0.04, 0.03]))]
    [0.03, 0.04, 0.04]
    """
    p = jnp.asarray(p_value)
    order, count = jnp.argsort(p), (~jnp.isnan(p)).sum()  # NaN last
    scaled = p[order] * count / (1 + jnp.arange(len(p)))
    return _put_back(p, order, jax.lax.cummin(jnp.nan_to_num(scaled, nan=jnp.inf), reverse=True))


def _put_back(p: Array, order: Array, stepped: Array) -> Array:
    adjusted = jnp.zeros_like(p).at[order].set(jnp.minimum(stepped, 1))
    return jnp.where(jnp.isnan(p), jnp.nan, adjusted)


def max_t(
    estimate: Float[AnyArray, " K"], draws: Float[AnyArray, "B K"], *, level: float = 0.95
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """Adjusted two-sided p-values, and intervals that hold all at once, from bootstrap draws.

    Each deviation of a draw from its estimate is divided by its standard error over the draws;
    what counts is the largest of a draw (step-down for the p-values, single-step for intervals).

    Args:
      estimate: K differences.
      draws: bootstrap draws of the same (`crossed_bootstrap` with a statistic).
      level: with which all intervals together hold.

    Returns:
      p-values, at least 1 / (B + 1); lower ends; upper ends.

    >>> draws = jax.random.normal(jax.random.key(0), (4000, 2))
    >>> p, low, high = max_t(jnp.array([0.0, 5.0]), draws + jnp.array([0.0, 5.0]))
    >>> bool(p[0] > 0.9), bool(p[1] < 0.001), bool(high[0] > 2.1)  # 2.24 for two independent ones
    (True, True, True)
    """
    estimate, draws = jnp.asarray(estimate), jnp.asarray(draws)
    apart = draws - estimate
    se = jnp.sqrt((apart**2).mean(0))
    safe = jnp.where(se > 0, se, 1)
    t, deviations = jnp.abs(estimate) / safe, jnp.abs(apart) / safe
    order = jnp.argsort(-t)
    # Of a step down, only those not found before count: the largest from each place on.
    largest = jax.lax.cummax(deviations[:, order], axis=1, reverse=True)
    count = (largest >= t[order]).sum(0)
    p = jax.lax.cummax((count + 1) / (len(draws) + 1))
    critical = jnp.quantile(deviations.max(1), level)
    adjusted = jnp.zeros_like(estimate).at[order].set(p)
    return adjusted, estimate - critical * se, estimate + critical * se
