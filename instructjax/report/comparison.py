"""Models or strategies side by side, and their differences on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Int
from scipy.special import stdtr

from instructjax.generalization.analysis import Analysis
from instructjax.generalization.estimate import Estimate
from instructjax.generalization.paired import holm
from instructjax.generalization.verdict import analyze
from instructjax.report.numbers import show_with_spread
from instructjax.report.results import Results
from instructjax.report.scores import CellScores, pick_scores
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten

CELL_COLUMNS = ("training pairs", "intra-task", "known inputs", "inter-task")
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Means of every model, and differences from the first."""

    note: str
    tables: list[Table]


def compare_models(
    results: Results, metric: str, options: Mapping[str, Any]
) -> ModelSection | None:
    """Tables of several models; None where there is one.

    Differences are taken row by row, so what all models find hard cancels.
    """
    having = set(results.columns["model"][results.columns["metric"] == metric])
    models = [model for model in results.models if model in having][:_SHOWN]
    if len(models) < 2:
        return None
    scores = [pick_scores(results, model, metric) for model in models]
    means, verdicts = [], []
    for one in scores:
        found = _analyze(one, options)
        means.append((shorten(one.model, 80), *map(_show, found.cells)))
        gaps = (found.gaps.intra, found.gaps.inter, found.gaps.joint)
        verdicts.append((shorten(one.model, 80), found.level, *map(_mark, gaps)))
    tables = [
        make_table(f"Mean {metric}", ("model",), CELL_COLUMNS, means),
        make_table(
            "Verdicts", ("model", "generalizes over"), ("intra", "inter", "joint"), verdicts
        ),
    ]
    differences, p_values = [], []
    for other in scores[1:]:
        a, b = _pair(scores[0], other)
        if len(a):
            # Weighted and clustered as each model alone is.
            cells = _analyze(_subtract(scores[0], other, a, b), options).cells
            differences.append((shorten(other.model, 80), f"{len(a):,}", *map(_show, cells)))
            p_values.append([_find_p_value(cell) for cell in cells])
    note = "An asterisk marks gaps whose interval does not hold 0."
    if differences:
        title = f"Difference from {shorten(models[0], 80)}, on the same rows"
        marked = _mark_sure(differences, np.array(p_values))
        tables.append(make_table(title, ("model",), ("rows", *CELL_COLUMNS), marked))
        note += (
            " In differences it marks those that are sure at 5% after Holm's correction for all "
            "of them together. What both models find hard "
            "cancels, row by row; intervals are made as those of one model are."
        )
    return ModelSection(note=note, tables=tables)


def _pair(
    first: CellScores, other: CellScores
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Places of the rows, by id, instruction and input, that both have; the last of equal ones."""
    places = []
    for scores in (first, other):
        keys = list(zip(scores.id, scores.instruction, scores.input, strict=True))
        places.append(dict(zip(keys, range(len(keys)), strict=True)))
    shared = [key for key in places[0] if key in places[1]]
    return (
        np.array([places[0][key] for key in shared], int),
        np.array([places[1][key] for key in shared], int),
    )


def _subtract(
    first: CellScores, other: CellScores, a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"]
) -> CellScores:
    """Scores other - first of the rows that both have."""
    columns = {field.name: getattr(first, field.name) for field in fields(first)}
    shared = {name: x[a] for name, x in columns.items() if isinstance(x, np.ndarray)}
    return replace(other, **shared | {"value": other.value[b] - first.value[a]})


def _find_p_value(difference: Estimate | None) -> float:
    """Two-sided; NaN without an estimate, 1 where nothing is known of its error."""
    if difference is None:
        return math.nan
    if not math.isfinite(difference.half_width):
        return 1.0
    return 2 * float(stdtr(difference.df, -abs(difference.estimate) / difference.se))


def _mark_sure(
    rows: list[tuple[str, ...]], p_values: Float64[np.ndarray, "M 4"]
) -> list[tuple[str, ...]]:
    sure, tested = np.zeros(p_values.shape, bool), ~np.isnan(p_values)
    with jax.enable_x64(True):
        sure[tested] = np.asarray(holm(p_values[tested])) < 0.05
    return [
        (*row[:2], *(text + " *" * bool(mark) for text, mark in zip(row[2:], marks, strict=True)))
        for row, marks in zip(rows, sure, strict=True)
    ]


def _analyze(scores: CellScores, options: Mapping[str, Any]) -> Analysis:
    return analyze(
        scores.value, scores.instruction, scores.input, scores.tasks, scores.cell, **options
    )


def _show(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return show_with_spread(estimate.estimate, estimate.half_width)


def _mark(estimate: Estimate | None) -> str:
    sure = estimate is not None and (estimate.low > 0 or estimate.high < 0)
    return _show(estimate) + (" *" if sure else "")
