r"""Standard errors of the four cell means and of the gaps between them.

Instructions are clusters, and inputs, or tasks where both are nested in tasks. A cell of
few clusters underestimates its variance more than one of many, so the small-sample factor goes into
each cell: a cluster with share h of a cell counts there 1 / sqrt(1 - h) times (for equal clusters
that is the factor G / (G - 1); Bell and McCaffrey 2002, "Bias Reduction in Standard Errors").

Of two ways, V = V_C + V_Z - V_CZ (`cluster_se`). V_CZ is to hold what only the combination brings,
so it is taken of what is left of the scores of a cell without the means of its clusters, as mean
squares are: of a complete grid, V is then unbiased, also for the interaction, in which effects of c
and of z cancel. V is at least the smaller of V_C and V_Z.

Degrees of freedom are Welch's and Satterthwaite's (1946), V^2 / sum (V_b^2 / df_b), over the
seen and the unseen clusters of each way, with df_b the fewest in a cell that enters: clusters count
by the variance they bring. G equal clusters of a cell have G - 1; a few large ones among small
ones (tasks of many and of few inputs, "micro" weights) have fewer (`cluster_df`). A gap between
inputs under the same few instructions is not limited by their number. (Give no way that is nested
in another: it would count twice.) The instructions of cells 0 and 1 and the inputs of cells 0 and 2
were seen: where there is only one (the book's fixed c*), the estimate is about that one, and it
limits nothing. One unseen instruction, input or task leaves 0 degrees of freedom, an infinite
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import (
    ClusterSE,
    cluster_sums,
    intersect_ids,
    satterthwaite,
)

Ids = Int[AnyArray, " N"]


class CellCovariance(NamedTuple):
    """Covariance of the four cell means, in squared units of the score.

    Attributes:
      total: by inclusion and exclusion over the ways, [4, 4].
      single: of each way alone, [W, 4, 4].
      clusters: how many clusters of each way are in each cell, [W, 4].
      df: degrees of freedom of each way in each cell, [W, 4]; G - 1 of equal clusters.
    """

    total: Array
    single: Array
    clusters: Array
    df: Array


def cell_covariance(
    influence: Float[AnyArray, "N 4"], share: Float[AnyArray, "N 4"], ids: Sequence[Ids]
) -> CellCovariance:
    """Cluster-robust covariance of the four cell means.

    Args:
      influence: from `cells.cell_influence`.
      share: from `cells.cell_weights`.
      ids: one array a way (instructions, inputs, tasks), from 0 and below N.

    >>> from instructjax.generalization.cells import cell_influence, cell_weights
    >>> score, share = jnp.array([1.0, 0.0]), cell_weights(jnp.array([0, 0]))
    >>> found = cell_covariance(cell_influence(score, share), share, [jnp.array([0, 1])])
    >>> round(float(found.total[0, 0]), 4), float(found.clusters[0, 0])  # sd^2 / 2
    (0.25, 2.0)
    """
    single = [_one_way(influence, share, way) for way in ids]
    shares = [cluster_sums(share, way) for way in ids]
    clusters = jnp.stack([(of_cluster > 0).sum(0) for of_cluster in shares])
    df = jnp.stack([cluster_df(of_cluster) for of_cluster in shares])
    total = sum(single)
    for size in range(2, len(ids) + 1):
        for some in combinations(range(len(ids)), size):
            term = _combination(influence, share, [ids[i] for i in some], clusters[jnp.array(some)])
            total += (-1) ** (size + 1) * term
    counts = clusters.astype(single[0].dtype)
    return CellCovariance(jnp.asarray(total), jnp.stack(single), counts, df)


def cluster_df(share: Float[AnyArray, "G K"]) -> Float[Array, " K"]:
    r"""Degrees of freedom of the cluster-robust variance of means, [K].

    Of a variance \(\sum_g p_g^2 (y_g - \bar y)^2 / (1 - p_g)\) with p the shares and y the means
    of the clusters, twice the squared mean over the variance, where the variance of \(y_g\) goes
    with \(1 / p_g\) (Bell and McCaffrey 2002, with scores as independent as for the factor
    above): \(1 / (\sum_g (\frac{p_g}{1 - p_g})^2 (1 - 2 p_g) + (\sum_g \frac{p_g^2}{1 -
    p_g})^2)\). Of G equal shares this is G - 1, and never more; nor less than 1 from two on.

    Args:
      share: of each cluster in each mean; 0 where it has no scores there.

    >>> shares = jnp.array([[0.25, 0.7], [0.25, 0.1], [0.25, 0.1], [0.25, 0.1]])
    >>> [round(float(df), 2) for df in cluster_df(shares)]
    [3.0, 1.59]
    """
    p = jnp.asarray(share)
    most = jnp.maximum((p > 0).sum(0) - 1, 0)
    odds = p / jnp.where(p < 1 - 1e-6, 1 - p, 1.0)
    spread = (odds**2 * (1 - 2 * p)).sum(0) + (p * odds).sum(0) ** 2
    df = jnp.clip(1 / jnp.where(spread > 0, spread, 1), 1, jnp.maximum(most, 1))
    return jnp.where(most > 0, df, 0.0)


def _one_way(influence: Float[AnyArray, "N 4"], share: Float[AnyArray, "N 4"], way: Ids) -> Array:
    sums, shares = cluster_sums(influence, way), cluster_sums(share, way)
    # A single cluster has nothing to vary from: its sum is 0 whatever the factor.
    sums /= jnp.sqrt(jnp.where(shares < 1 - 1e-6, 1 - shares, 1.0))
    return sums.T @ sums


def _combination(
    influence: Float[AnyArray, "N 4"],
    share: Float[AnyArray, "N 4"],
    ways: Sequence[Ids],
    clusters: Int[Array, "W 4"],
) -> Array:
    """Covariance from what only the combination of ways brings."""
    both = intersect_ids(ways)
    number = (cluster_sums(share, both) > 0).sum(0)
    rest = jnp.asarray(influence)
    for way in ways:
        shares = cluster_sums(share, way)
        rest -= share * (cluster_sums(influence, way) / jnp.where(shares > 0, shares, 1))[way]
    free = number - clusters.sum(0) + len(ways) - 1
    # With holes, means of clusters still hold effects of the other way: fine where they are of
    # several scores, but not where there is about one score a cluster.
    enough = (number == clusters.prod(0)) | (number >= 2 * clusters.sum(0))
    scale = jnp.sqrt((number - 1) / jnp.maximum(free, 1))
    used = jnp.where(enough, rest * scale, influence)
    # A way with one cluster varies not at all, and there is nothing to subtract.
    return _one_way(jnp.where(clusters.min(0) > 1, used, 0.0), share, both)


def contrast_se(
    covariance: CellCovariance,
    contrasts: Float[AnyArray, "K 4"],
    seen: Bool[AnyArray, "W 4"],
) -> ClusterSE:
    """Standard errors and degrees of freedom of linear contrasts of cell means, [K] each.

    Args:
      covariance: from `cell_covariance`.
      contrasts: what each cell mean is multiplied with; a cell with 0 does not enter.
      seen: whether the clusters of a way are seen ones in a cell, so that a single one is given.

    >>> parts = jnp.diag(jnp.array([1.0, 3.0, 0.0, 0.0]))
    >>> counts = jnp.array([[8.0, 5.0, 0.0, 0.0]])
    >>> cov = CellCovariance(parts, parts[None], counts, counts - 1)
    >>> se, df = contrast_se(cov, jnp.array([[1.0, -1.0, 0.0, 0.0]]), jnp.ones((1, 4), bool))
    >>> float(se[0]), float(df[0])
    (2.0, 4.0)
    """
    a = jnp.asarray(contrasts)
    total = jnp.einsum("ki,ij,kj->k", a, covariance.total, a)
    single = jnp.einsum("ki,wij,kj->wk", a, covariance.single, a)
    clusters = jnp.asarray(covariance.clusters)
    given = jnp.asarray(seen) & (clusters == 1)
    enters = (a != 0)[:, None, :] & ~given & (clusters > 0)  # [K, W, 4]
    sides = jnp.stack([jnp.asarray(seen), ~jnp.asarray(seen)])  # [S, W, 4]
    of_side = jnp.einsum("ki,swi,wij,swj,kj->swk", a, sides, covariance.single, sides, a)
    df = jnp.where(sides[:, None] & enters, covariance.df, jnp.inf).min(3).swapaxes(1, 2)
    variance = jnp.maximum(total, single.min(0))
    of_side, df = (x.reshape(-1, len(a)) for x in (of_side, df))
    joint = satterthwaite(variance, of_side, df)
    # Of a way with one unseen cluster nothing is known, however small its variance looks.
    return ClusterSE(jnp.sqrt(variance), jnp.where(df.min(0) < 1, 0.0, joint))
