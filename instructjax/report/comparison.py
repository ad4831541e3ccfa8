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

from instructjax.errors import UsageError
from instructjax.generalization.analysis import Analysis
from instructjax.generalization.estimate import Estimate
from instructjax.generalization.paired import holm
from instructjax.generalization.split_recipes import SplitRecipe
from instructjax.generalization.verdict import analyze
from instructjax.report.numbers import show_estimate
from instructjax.report.results import Results
from instructjax.report.scores import CellScores, pick_scores
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Means of every model, and differences from the first."""

    note: str
    tables: list[Table]


def compare_models(
    results: Results, metric: str, options: Mapping[str, Any], first: str | None = None
) -> ModelSection | None:
    """Tables of several models, the `first` first; None where there is one.

    Differences are taken row by row, so what all models find hard cancels.
    """
    having = set(results.columns["model"][results.columns["metric"] == metric])
    models = [model for model in results.models if model in having]
    if len(models) < 2:
        return None
    models.sort(key=lambda model: model != first)
    scores, without = [], []
    for model in models:
        try:
            scores.append(pick_scores(results, model, metric, options.get("better")))
        except UsageError:
            without.append(shorten(model, 80))
    hidden, scores = scores[_SHOWN:], scores[:_SHOWN]
    means, verdicts = [], []
    words = analyze_scores(scores[0], options).words
    for one in scores:
        found = analyze_scores(one, options)
        missing = sum(sum(reasons.values()) for reasons in one.missing)
        means.append((shorten(one.model, 80), *map(_show, found.cells), f"{missing:,}"))
        gaps = (found.gaps.intra, found.gaps.inter, found.gaps.joint)
        verdicts.append((shorten(one.model, 80), found.headline, *map(_mark, gaps)))
    columns = tuple(f"m{k} {name}" for k, name in enumerate(words.cells))
    counted = (*columns, "scores missing")
    if all(row[-1] == "0" for row in means):
        means, counted = [row[:-1] for row in means], columns
    tables = [
        make_table(f"Mean {shorten(metric, 60)}", ("model",), counted, means),
        make_table(
            "Verdicts",
            ("model", "verdict"),
            (words.intra, words.inter, "joint gap"),
            verdicts,
        ),
    ]
    differences, p_values = [], []
    for other in scores[1:]:
        a, b = _pair(scores[0], other)
        if len(a):
            # Weighted and clustered as each model alone is.
            # What the difference of two scores can be at most is not looked for.
            no_bounds = {**options, "bounds": (-math.inf, math.inf)}
            cells = analyze_scores(_subtract(scores[0], other, a, b), no_bounds).cells
            differences.append((shorten(other.model, 80), f"{len(a):,}", *map(_show, cells)))
            p_values.append([_find_p_value(cell) for cell in cells])
    note = "An asterisk marks gaps whose interval does not hold 0."
    if differences:
        title = f"Difference from {shorten(scores[0].model, 80)}, on the same rows"
        marked = _mark_sure(differences, np.array(p_values))
        tables.append(make_table(title, ("model",), ("rows", *columns), marked))
        note += (
            " In differences it marks those that are sure at 5% after Holm's correction for all "
            "of them together. What both models find hard "
            "cancels, row by row; intervals are made as those of one model are."
        )
    if without:
        note += f" Without a score in this metric: {', '.join(without)}."
    if hidden:
        names = ", ".join(shorten(one.model, 40) for one in hidden[:20])
        note += f" Not shown: {len(hidden)} more ({names})."
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
    if not math.isfinite(difference.half_width) or difference.se == 0:
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


def analyze_scores(scores: CellScores, options: Mapping[str, Any]) -> Analysis:
    """The analysis of a model, with the options of `analyze`."""
    recipe: SplitRecipe | None = options.get("recipe")
    held_out = recipe is not None and recipe.by == "category"
    known = held_out and bool((scores.category != "").all())
    return analyze(
        scores.value,
        scores.instruction,
        scores.input,
        scores.tasks,
        scores.cell,
        category_id=scores.category if known else None,
        **{**options, "better": scores.better},
    )


def _show(estimate: Estimate | None) -> str:
    return "–" if estimate is None else show_estimate(estimate)


def _mark(estimate: Estimate | None) -> str:
    sure = estimate is not None and (estimate.low > 0 or estimate.high < 0)
    return _show(estimate) + (" *" if sure else "")
