r"""Standard errors of the four cell means and of the gaps between them.

Instructions are clusters, and inputs, or tasks where both are nested in tasks. A cell of
few clusters underestimates its variance more than one of many, so the small-sample factor goes into
each cell: a cluster with share h of a cell counts there 1 / sqrt(1 - h) times (for equal clusters
that is the factor G / (G - 1); Bell and McCaffrey 2002, "Bias Reduction in Standard Errors").

Degrees of freedom of a way: the smallest number of clusters in a cell that enters, less 1; of all
ways, Satterthwaite's (1946), (sum V)^2 / sum (V^2 / df), so that a way counts by the variance it
brings: a gap between inputs under the same few instructions is not limited by their number. (Give
no way that is nested in another: it would count twice.) The instructions of cells 0 and 1 and the
inputs of cells 0 and 2 were seen: where there is only one (the book's fixed c*), the estimate is
about that one, and it limits nothing. One unseen instruction, input or task leaves 0 degrees of
freedom, an infinite interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import ClusterSE, cluster_sums, intersect_ids

Ids = Int[AnyArray, " N"]


class CellCovariance(NamedTuple):
    """Covariance of the four cell means, in squared units of the score.

    Attributes:
      total: by inclusion and exclusion over the ways, [4, 4].
      single: of each way alone, [W, 4, 4].
      clusters: how many clusters of each way are in each cell, [W, 4].
    """

    total: Array
    single: Array
    clusters: Array


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
    total = sum(single)
    for size in range(2, len(ids) + 1):
        for some in combinations(ids, size):
            term = _one_way(influence, share, intersect_ids(some))
            total += (-1) ** (size + 1) * term
    clusters = jnp.stack([(cluster_sums(share, way) > 0).sum(0) for way in ids])
    return CellCovariance(jnp.asarray(total), jnp.stack(single), clusters.astype(single[0].dtype))


def _one_way(influence: Float[AnyArray, "N 4"], share: Float[AnyArray, "N 4"], way: Ids) -> Array:
    sums, shares = cluster_sums(influence, way), cluster_sums(share, way)
    # A single cluster has nothing to vary from: its sum is 0 whatever the factor.
    sums /= jnp.sqrt(jnp.where(shares < 1 - 1e-6, 1 - shares, 1.0))
    return sums.T @ sums


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
    >>> cov = CellCovariance(parts, parts[None], jnp.array([[8.0, 5.0, 0.0, 0.0]]))
    >>> se, df = contrast_se(cov, jnp.array([[1.0, -1.0, 0.0, 0.0]]), jnp.ones((1, 4), bool))
    >>> float(se[0]), float(df[0])
    (2.0, 4.0)
    """
    a = jnp.asarray(contrasts)
    total = jnp.einsum("ki,ij,kj->k", a, covariance.total, a)
    single = jnp.einsum("ki,wij,kj->wk", a, covariance.single, a)
    clusters = jnp.asarray(covariance.clusters)
    given = jnp.asarray(seen) & (clusters == 1)
    enters = (a != 0)[:, None, :] & ~given & (clusters > 0)
    df = jnp.where(enters, clusters, jnp.inf).min(2).T - 1  # [W, K]
    # Of a way with one unseen cluster nothing is known, however small its variance looks.
    none = (df < 1).any(0)
    spread = (single**2 / jnp.maximum(df, 1)).sum(0)
    joint = jnp.where(spread > 0, single.sum(0) ** 2 / jnp.where(spread > 0, spread, 1), df.min(0))
    df = jnp.where(none, 0.0, jnp.maximum(joint, df.min(0)))
    return ClusterSE(jnp.sqrt(jnp.maximum(total, single.max(0))), df)
