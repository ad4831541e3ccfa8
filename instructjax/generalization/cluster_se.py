r"""Standard errors where scores share instructions, inputs, tasks: cluster-robust, in several ways.

A score's influence on an estimate is the first-order change it makes: for a mean, (s_i - m) / N.
Everything here takes influence values, so that gaps, ratios and paired differences need nothing new
(`mean_influence`, `ratio_influence`, `cells.cell_influence`; a linear combination of estimates has
the linear combination of their influences).

Clusters g in one way: \(V_G = \frac{G}{G-1} \sum_g (\sum_{i \in g} e_i)^2\) (Liang and Zeger 1986;
for a mean this is Miller 2024, arXiv 2411.00640, with the factor G/(G-1)). In several ways, by
inclusion and exclusion: \(V = V_C + V_Z - V_{C \cap Z}\) (Cameron, Gelbach and Miller 2011, "Robust
Inference With Multiway Clustering"). That can be negative or smaller than the largest \(V_G\); the
largest \(V_G\) is taken then, since the other way cannot make an estimate surer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.quantiles import student_t_quantile

Ids = Int[AnyArray, " N"]


class ClusterSE(NamedTuple):
    """Attributes: se, in units of the estimate; df, degrees of freedom for Student's t."""

    se: Array
    df: Array


def mean_influence(
    score: Float[AnyArray, " N"], mask: Bool[AnyArray, " N"] | None = None
) -> Float[Array, " N"]:
    """(s - mean) / n; 0 where masked.

    >>> mean_influence(jnp.array([1.0, 0.0, 9.0]), jnp.array([True, True, False])).tolist()
    [0.25, -0.25, 0.0]
    """
    there = jnp.ones(score.shape[0], bool) if mask is None else jnp.asarray(mask)
    count = jnp.maximum(there.sum(), 1)
    mean = jnp.where(there, score, 0).sum() / count
    return jnp.where(there, jnp.asarray(score) - mean, 0) / count


def ratio_influence(
    above: Float[AnyArray, " N"], below: Float[AnyArray, " N"]
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """Ratio of two sums over the same scores, and each score's influence on it (delta method).

    >>> ratio, e = ratio_influence(jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]))
    >>> float(ratio), e.tolist()
    (0.75, [-0.125, 0.125])
    """
    part, whole = jnp.asarray(above), jnp.asarray(below)
    total = whole.sum()
    ratio = part.sum() / total
    return ratio, (part - ratio * whole) / total


def cluster_sums(influence: Float[AnyArray, "N ..."], cluster_id: Ids) -> Float[Array, "N ..."]:
    """Sum of each cluster; zeros for the ids below N that are none."""
    return jax.ops.segment_sum(jnp.asarray(influence), cluster_id, num_segments=len(cluster_id))


def count_clusters(cluster_id: Ids, mask: Bool[AnyArray, " N"] | None = None) -> Int[Array, ""]:
    """How many different ids there are among the unmasked.

    >>> int(count_clusters(jnp.array([2, 0, 2, 1]), jnp.array([True, True, True, False])))
    2
    """
    there = jnp.ones(len(cluster_id)) if mask is None else jnp.asarray(mask).astype(float)
    return (cluster_sums(there, cluster_id) > 0).sum()


def intersect_ids(ids: Sequence[Ids]) -> Int[Array, " N"]:
    """Ids of the combinations that occur, from 0 in their lexical order.

    >>> intersect_ids([jnp.array([1, 0, 1, 1]), jnp.array([0, 5, 2, 0])]).tolist()
    [1, 0, 2, 1]
    """
    arrays = [jnp.asarray(way) for way in ids]
    order = jnp.lexsort(arrays[::-1])
    new = jnp.zeros(len(order), bool)
    for way in arrays:
        new |= jnp.diff(way[order], prepend=way[order][:1]) != 0
    return jnp.zeros(len(order), int).at[order].set(jnp.cumsum(new))


def satterthwaite(
    variance: Float[AnyArray, ...],
    parts: Float[AnyArray, "B ..."],
    df: Float[AnyArray, "B ..."] | Int[AnyArray, "B ..."],
) -> Float[Array, ...]:
    """Degrees of freedom of a variance from those of its parts, at least the fewest of theirs.

    V^2 / sum (V_b^2 / df_b) over the first axis (Satterthwaite 1946).

    Args:
      variance: of the estimate.
      parts: what each source brings.
      df: degrees of freedom of each.

    >>> float(satterthwaite(jnp.array(4.0), jnp.array([2.0, 2.0]), jnp.array([4.0, 4.0])))
    8.0
    """
    fewest = jnp.asarray(df).min(0)
    spread = (jnp.asarray(parts) ** 2 / jnp.maximum(df, 1)).sum(0)
    joint = jnp.where(spread > 0, variance**2 / jnp.where(spread > 0, spread, 1), fewest)
    return jnp.maximum(joint, fewest)


def one_way_variance(
    influence: Float[AnyArray, " N"],
    cluster_id: Ids,
    mask: Bool[AnyArray, " N"] | None = None,
    *,
    small_sample: bool = True,
) -> Float[Array, ""]:
    """Variance of an estimate whose scores are independent between clusters.

    Args:
      influence: of each score; 0 where masked.
      cluster_id: from 0, below N.
      small_sample: multiply by G / (G - 1).

    >>> e = mean_influence(jnp.array([1.0, 1.0, 0.0, 0.0]))
    >>> float(one_way_variance(e, jnp.array([0, 0, 1, 1])))
    0.25
    """
    count = count_clusters(cluster_id, mask)
    factor = count / jnp.maximum(count - 1, 1) if small_sample else 1.0
    return factor * (cluster_sums(influence, cluster_id) ** 2).sum()


def multiway_cluster_se(
    influence: Float[AnyArray, " N"],
    ids: Sequence[Ids],
    mask: Bool[AnyArray, " N"] | None = None,
    *,
    small_sample: bool = True,
) -> ClusterSE:
    """Cluster-robust standard error in one or several ways, and degrees of freedom.

    Degrees of freedom by Satterthwaite (1946), V^2 / sum (V_G^2 / (G - 1)) over the ways, at least
    the smallest G - 1: a way counts by the variance it brings. Student's t then holds its level
    from 8 clusters on (`experiments/coverage.py`); normal quantiles do not. With one cluster of a
    way they are 0, and an interval is infinite.

    A way nested in another (inputs in tasks) changes nothing: its terms cancel, and it does not
    count in the degrees of freedom. So all that scores share may be given: instructions, inputs and
    tasks, whichever are crossed.

    Args:
      influence: of each score, 0 where masked.
      ids: one array a way, ids from 0 and below N: instructions, inputs, ...
      mask: scores that are there; default: all.
      small_sample: factor G / (G - 1) in each term.

    >>> score = jnp.array([1.0, 1.0, 0.0, 0.0])  # two instructions on two inputs
    >>> c, z = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    >>> se, df = multiway_cluster_se(mean_influence(score), (c, z))
    >>> float(se), float(df)
    (0.5, 1.0)
    """
    single = [one_way_variance(influence, way, mask, small_sample=small_sample) for way in ids]
    count = [count_clusters(way, mask) for way in ids]
    nested = [jnp.array(False) for _ in ids]
    total = sum(single)
    for size in range(2, len(ids) + 1):
        for some in combinations(range(len(ids)), size):
            both = intersect_ids([ids[i] for i in some])
            term = one_way_variance(influence, both, mask, small_sample=small_sample)
            total += (-1) ** (size + 1) * term
            if size == 2:
                i, j = some
                cells = count_clusters(both, mask)
                nested[j] |= cells == count[j]
                nested[i] |= (cells == count[i]) & (count[i] > count[j])
    inner = jnp.stack(nested)
    parts = jnp.where(inner, 0, jnp.stack(single))
    df = jnp.where(inner, jnp.inf, jnp.stack(count).astype(parts.dtype) - 1)
    variance = jnp.maximum(total, parts.max())
    joint = satterthwaite(variance, parts, df)
    return ClusterSE(jnp.sqrt(variance), jnp.where(df.min() < 1, 0.0, joint))


def t_interval(
    estimate: Float[AnyArray, "*shape"],
    se: Float[AnyArray, "*shape"],
    df: Float[AnyArray, "*shape"],
    level: float = 0.95,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """estimate -+ t x se.

    >>> low, high = t_interval(jnp.array(0.5), jnp.array(0.1), jnp.array(7.0))
    >>> round(float(low), 3), round(float(high), 3)
    (0.264, 0.736)
    """
    half = student_t_quantile((1 + level) / 2, jnp.asarray(df)) * se
    middle = jnp.asarray(estimate)
    return middle - half, middle + half
