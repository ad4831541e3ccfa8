r"""Standard errors of the four cell means and of the gaps between them.

Instructions are clusters, and inputs, and tasks where they are given (then Cameron, Gelbach and
Miller's sum is the one over tasks, since instructions and inputs are nested in them). A cell of
few clusters underestimates its variance more than one of many, so the small-sample factor goes into
each cell: a cluster with share h of a cell counts there 1 / sqrt(1 - h) times (for equal clusters
that is the factor G / (G - 1); Bell and McCaffrey 2002, "Bias Reduction in Standard Errors").

Degrees of freedom: the smallest number of clusters in a cell that enters, less 1. The instructions
of cells 0 and 1 and the inputs of cells 0 and 2 were seen: where there is only one (the book's
fixed c*), the estimate is about that one, and it limits nothing. One unseen instruction, input or
task leaves 0 degrees of freedom, an infinite interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import ClusterSE, cluster_sums, intersect_ids

Ids = Int[AnyArray, " N"]


def contrast_se(
    influence: Float[AnyArray, "N 4"],
    share: Float[AnyArray, "N 4"],
    ids: Sequence[Ids],
    contrasts: Float[AnyArray, "K 4"],
    seen: Bool[AnyArray, "W 4"],
) -> ClusterSE:
    """Standard errors and degrees of freedom of linear contrasts of cell means, [K] each.

    Args:
      influence: from `cells.cell_influence`.
      share: from `cells.cell_weights`.
      ids: one array a way (instructions, inputs, tasks), from 0 and below N.
      contrasts: what each cell mean is multiplied with; a cell with 0 does not enter.
      seen: whether the clusters of a way are seen ones in a cell, so that a single one is given.

    >>> score, cell = jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.zeros(4, int)
    >>> from instructjax.generalization.cells import cell_influence, cell_weights
    >>> share = cell_weights(cell)
    >>> c, z = jnp.array([0, 1, 0, 1]), jnp.array([0, 0, 1, 1])
    >>> seen = jnp.array([[True, True, False, False], [True, False, True, False]])
    >>> one = jnp.array([[1.0, 0.0, 0.0, 0.0]])
    >>> se, df = contrast_se(cell_influence(score, share), share, (c, z), one, seen)
    >>> round(float(se[0]), 4), float(df[0])  # V_C = V_Z = 1/16, of both together 1/16
    (0.25, 1.0)
    """
    contrasts = jnp.asarray(contrasts)
    total, largest = jnp.zeros(len(contrasts)), jnp.zeros(len(contrasts))
    for size in range(1, len(ids) + 1):
        for some in combinations(ids, size):
            way = some[0] if size == 1 else intersect_ids(some)
            term = _way_variance(influence, share, way, contrasts)
            total += (-1) ** (size + 1) * term
            largest = jnp.maximum(largest, term) if size == 1 else largest
    counts = count_in_cells(share, ids)
    given = jnp.asarray(seen) & (counts == 1)
    enters = (contrasts != 0)[:, None, :] & ~given & (share.sum(0) > 0)
    smallest = jnp.where(enters, counts, jnp.inf).min((1, 2))
    return ClusterSE(jnp.sqrt(jnp.maximum(total, largest)), smallest - 1)


def count_in_cells(share: Float[AnyArray, "N 4"], ids: Sequence[Ids]) -> Float[Array, "W 4"]:
    """How many different ids of each way are in each cell.

    >>> share = jnp.array([[0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 1.0, 0, 0]])
    >>> count_in_cells(share, [jnp.array([1, 1, 0])]).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    sums = [cluster_sums(share, way) for way in ids]
    return jnp.stack([(x > 0).sum(0) for x in sums]).astype(float)


def _way_variance(
    influence: Float[AnyArray, "N 4"],
    share: Float[AnyArray, "N 4"],
    way: Ids,
    contrasts: Float[Array, "K 4"],
) -> Float[Array, " K"]:
    sums, shares = jax.tree.map(lambda x: cluster_sums(x, way), (influence, share))
    # A single cluster has nothing to vary from: its sum is 0 whatever the factor.
    rest = jnp.where(shares < 1 - 1e-6, 1 - shares, 1.0)
    return (((sums / jnp.sqrt(rest)) @ contrasts.T) ** 2).sum(0)
