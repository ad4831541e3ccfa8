"""Models or strategies side by side, and their differences on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.generalization.estimate import Estimate
from instructjax.generalization.analysis import Analysis
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

    Differences are taken row by row, so what all models find hard cancels; their intervals are
    cluster-robust as those of the means.
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
        make_table("Verdicts", ("model", "generalizes over"), ("intra", "inter", "joint"), verdicts),
    ]
    differences = []
    for other in scores[1:]:
        paired = _pair(scores[0], other)
        if paired is not None:
            found = _analyze(paired, options)
            rows = f"{len(paired.value):,}"
            differences.append((shorten(other.model, 80), rows, *map(_mark, found.cells)))
    if differences:
        title = f"Difference from {shorten(models[0], 80)}, on the same rows"
        columns = ("rows", *CELL_COLUMNS)
        tables.append(make_table(title, ("model",), columns, differences))
    note = "An asterisk marks differences and gaps whose interval does not hold 0."
    return ModelSection(note=note, tables=tables)


def _analyze(scores: CellScores, options: Mapping[str, Any]) -> Analysis:
    return analyze(
        scores.value, scores.instruction, scores.input, scores.tasks, scores.cell, **options
    )


def _pair(first: CellScores, other: CellScores) -> CellScores | None:
    """other - first on the rows, by id, instruction and input, that both have once."""
    places = {}
    for scores in (first, other):
        keys = list(zip(scores.id, scores.instruction, scores.input, strict=True))
        places[scores.model] = dict(zip(keys, range(len(keys)), strict=True))
    shared = [key for key in places[first.model] if key in places[other.model]]
    if not shared:
        return None
    a = np.array([places[first.model][key] for key in shared])
    b = np.array([places[other.model][key] for key in shared])
    return CellScores(
        model=other.model,
        metric=other.metric,
        value=other.value[b] - first.value[a],
        cell=first.cell[a],
        instruction=first.instruction[a],
        input=first.input[a],
        task=first.task[a],
        id=first.id[a],
        left_out=0,
    )


def _show(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return show_with_spread(estimate.estimate, estimate.half_width)


def _mark(estimate: Estimate | None) -> str:
    sure = estimate is not None and (estimate.low > 0 or estimate.high < 0)
    return _show(estimate) + (" *" if sure else "")

