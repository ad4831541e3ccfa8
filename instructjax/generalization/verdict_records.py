"""What a verdict is about, read and checked: its options, ids of clusters, scores and cells."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np

from instructjax.errors import DataError, UsageError
from instructjax.generalization.cells import CELLS, Weights
from instructjax.generalization.verdict_words import Better


def check_options(
    level: float, smallest_gap: float, threshold: float | None, better: Better, weights: Weights
) -> None:
    """Refuses options that mean nothing."""
    if not (math.isfinite(smallest_gap) and smallest_gap >= 0):
        raise UsageError(
            f"smallest_gap is {smallest_gap}",
            remedy="give a finite number, 0 or more, in units of the score",
        )
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(
            f"epsilon (the threshold) is {threshold}",
            remedy="give a finite number, in units of the score",
        )
    if not 0 < level < 1:
        raise UsageError(f"the level is {level}", remedy="give one between 0 and 1, such as 0.95")
    if better not in get_args(Better):
        raise UsageError(f"better is {better!r}", remedy='give "higher" or "lower"')
    if weights not in get_args(Weights):
        raise UsageError(f"weights are {weights!r}", remedy='give "micro" or "macro"')


def number_ids(name: str, column: Any) -> np.ndarray:
    """Ids from 0 in the order of what was given."""
    values = np.asarray(column)
    # In numpy's text arrays a missing one has become text: look at what was given.
    given = column if values.dtype.kind in "US" else values.tolist()
    missing = [value is None or value != value for value in given]
    if any(missing):
        raise DataError(
            f"there is no id ({name})",
            row=f"row {missing.index(True) + 1}",
            remedy="give every row one, or leave the row out",
        )
    try:
        return np.unique(values, return_inverse=True)[1].ravel()
    except TypeError:
        raise DataError(
            f"ids of several kinds ({name})", remedy="give all as numbers, or all as strings"
        ) from None


def drop_nested(ids: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ways of clustering.

    What belongs to one task (category) each varies with it, and is no way of its own. One task
    alone is given.
    """
    ways = {
        name: column
        for name, column in ids.items()
        if name in ("instructions", "inputs") or column.max() > 0
    }
    names = list(ways)
    coarser = {name: [ways[k] for k in names[max(2, i + 1) :]] for i, name in enumerate(names)}
    return {
        name: column
        for name, column in ways.items()
        if not any(_is_nested(column, coarse) for coarse in coarser[name])
    }


def _is_nested(fine: np.ndarray, coarse: np.ndarray) -> bool:
    pairs = fine.astype(np.int64) * (int(coarse.max()) + 1) + coarse
    return len(np.unique(pairs)) == len(np.unique(fine))


def read_scores(score: Any, cell: Any, ids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in float64 and cells, of as many rows as the ids have."""
    values, places = np.asarray(score, np.float64), np.asarray(cell)
    if not len(values):
        raise UsageError("there are no scores", remedy="give at least one record")
    lengths = {len(column) for column in (values, places, *ids)}
    if len(lengths) > 1:
        raise DataError(
            f"columns have {', '.join(map(str, sorted(lengths)))} rows",
            remedy="give one id a score",
        )
    for wrong, what in (
        (~np.isfinite(values), "a score that is no finite number"),
        (~np.isin(places, range(CELLS)), "a cell that is not 0, 1, 2 or 3"),
    ):
        if wrong.any():
            raise DataError(what, row=f"row {int(wrong.argmax()) + 1}", remedy="leave the row out")
    return values, places.astype(np.int64)
