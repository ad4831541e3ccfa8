"""The scores that a verdict is about: one model, one metric, with ids to group by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float64, Int

from instructjax.errors import UsageError
from instructjax.evaluation.metrics import IFEVAL, METRICS
from instructjax.generalization.verdict_words import Better
from instructjax.report.results import Results

# Of other tools; evaluations here have none of these.
_LOWER = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "nll", "loss")
_LOWER += ("error_rate", "word_error_rate", "wer", "character_error_rate", "cer", "brier_score")
_REASONS = {
    "not_finite": "log Pr not finite: y has probability 0",
    "no_reference": "no reference",
    "no_prediction": "no prediction",
    "no_answer": "no right answer known",
    "no_constraints": "no constraints",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class CellScores:
    """Scores of one model in one metric.

    Attributes:
      model, metric: their names.
      value: of each row, in units of the metric.
      cell: 0 to 3.
      instruction, input: hash of each row's text, or its name where there is no hash.
      task: name of each row's task, "" where it has none.
      category: the same of its category.
      id: of each row.
      left_out: rows without a cell.
      missing: rows of each cell without a value, by reason.
      better: whether a "higher" or a "lower" value is better.
    """

    model: str
    metric: str
    value: Float64[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]
    instruction: np.ndarray
    input: np.ndarray
    task: np.ndarray
    category: np.ndarray
    id: np.ndarray
    left_out: int
    missing: tuple[Mapping[str, int], ...]
    better: Better

    @property
    def tasks(self) -> np.ndarray | None:
        """Of each row, or None where not every row has one."""
        return self.task if len(self.task) and bool((self.task != "").all()) else None

    def say_unnamed(self) -> str:
        """That some rows have a task and others have none, so that tasks are not told apart."""
        without = int((self.task == "").sum())
        if not 0 < without < len(self.task):
            return ""
        return f"{without:,} scores have no task, so tasks are not told apart in any number here."

    @property
    def goodness(self) -> Float64[np.ndarray, " n"]:
        """The values, with their signs changed where lower is better."""
        return self.value if self.better == "higher" else -self.value


def find_direction(metric: str, better: Better | None) -> Better:
    """Whether higher or lower values of a metric are better: as declared, else as is known of it.

    Raises:
      UsageError: it is declared otherwise than "higher" or "lower", or not known.

    >>> find_direction("rouge_l", None), find_direction("perplexity", None)
    ('higher', 'lower')
    """
    if better is not None:
        if better not in get_args(Better):
            raise UsageError(f"better is {better!r:.80}", remedy="give higher or lower")
        return better
    if metric in METRICS or metric in IFEVAL:
        return "higher"
    if metric in _LOWER:
        return "lower"
    raise UsageError(
        f"whether a higher or a lower {metric!r:.80} is better is not known",
        remedy="say it with --better higher or --better lower (better=... in Python)",
    )


def pick_scores(
    results: Results, model: str, metric: str, better: Better | None = None
) -> CellScores:
    """The scores of a model in a metric.

    Raises:
      UsageError: there are none, their cells or ids are missing, or it is not known whether higher
        is better.
    """
    for name, known, wanted in (
        ("model", results.models, model),
        ("metric", results.metrics, metric),
    ):
        if wanted not in known:
            raise UsageError(
                f"no {name} {wanted!r:.80}", remedy=f"use one of {', '.join(known)[:400]}"
            )
    better = find_direction(metric, better)
    columns = results.columns
    mine = (columns["model"] == model) & (columns["metric"] == metric)
    usable: Bool[np.ndarray, " N"] = mine & np.isfinite(results.value) & (results.cell >= 0)
    if not usable.any():
        raise UsageError(
            f"no row of {model!r:.80} in {metric!r:.80} has a value and a `cell`",
            remedy="evaluate the eval.jsonl of `instructjax split`, whose rows have a cell",
        )
    without = mine & ~np.isfinite(results.value) & (results.cell >= 0)
    reasons = np.where(
        np.isinf(results.value[without]), "infinite", columns["status"][without].astype(str)
    )
    missing = tuple(
        dict(Counter(_name_reason(r) for r in reasons[results.cell[without] == k].tolist()))
        for k in range(4)
    )
    sides = {}
    for side in ("instruction", "input"):
        hash, name = columns[f"{side}_hash"][usable], columns[f"{side}_id"][usable]
        sides[side] = np.where(hash == "", name, hash)
        if (sides[side] == "").any():
            raise UsageError(
                f"rows have no {side}_hash and no {side}_id", remedy="evaluate them again"
            )
    return CellScores(
        model=model,
        metric=metric,
        value=results.value[usable],
        cell=results.cell[usable],
        instruction=sides["instruction"],
        input=sides["input"],
        task=columns["task"][usable],
        category=columns["category"][usable],
        id=columns["id"][usable],
        left_out=int((mine & (results.cell < 0)).sum()),
        missing=missing,
        better=better,
    )


def _name_reason(status: str) -> str:
    reasons = [
        _REASONS.get(flag.strip(), flag.strip().replace("_", " ")) for flag in status.split(",")
    ]
    return " and ".join(dict.fromkeys(r for r in reasons if r not in ("", "ok"))) or "no value"
