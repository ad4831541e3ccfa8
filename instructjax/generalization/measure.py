"""Means of the cells of flat records, with their covariance: the program behind `analyze`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from instructjax.generalization.bootstrap import bootstrap_records
from instructjax.generalization.cells import Weights, cell_influence, cell_weights
from instructjax.generalization.contrasts import CellCovariance, cell_covariance

_DRAWS = 2000


class Measured(NamedTuple):
    """Attributes: means and counts of cells, covariance of the means, which cell a row is in."""

    means: np.ndarray
    counts: np.ndarray
    covariance: CellCovariance
    belongs: np.ndarray


def measure_cells(
    values: np.ndarray,
    cells: np.ndarray,
    ways: list[np.ndarray],
    tasks: np.ndarray | None,
    weights: Weights,
    key: Array | None,
) -> tuple[Measured, np.ndarray | None]:
    """Means and their covariance, in float64; bootstrap draws of the means if there is a key.

    Rows are padded to a power of two, so that few programs are compiled.
    """
    size = 1 << max(4, (len(values) - 1).bit_length())

    def pad(column):
        return np.pad(column, (0, size - len(column)))

    there = np.arange(size) < len(values)
    task = None if tasks is None else pad(tasks)
    padded = [pad(way) for way in ways]
    with jax.enable_x64(True):
        found = _compute(pad(values), pad(cells), padded, task, there, weights)
        means, share, covariance = jax.tree.map(np.asarray, found)
        draws = None
        if key is not None:
            counts = tuple(1 << int(way.max()).bit_length() for way in ways)
            draws = np.asarray(_draw(key, pad(values), padded, share, counts))
    belongs = share[: len(values)] > 0
    return Measured(means, belongs.sum(0), covariance, belongs), draws


@partial(jax.jit, static_argnums=5)
def _compute(values, cells, ways, tasks, there, weights):
    share = cell_weights(cells, tasks, weights=weights, mask=there)
    covariance = cell_covariance(cell_influence(values, share), share, ways)
    return share.T @ values, share, covariance


@partial(jax.jit, static_argnums=4)
def _draw(key, values, ways, share, num_clusters):
    return bootstrap_records(key, values, ways, share, num_clusters=num_clusters, draws=_DRAWS)
