"""The scores that a verdict is about: one model, one metric, with ids to group by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from instructjax.errors import UsageError
from instructjax.report.results import Results


@dataclass(frozen=True, kw_only=True, eq=False)
class CellScores:
    """Scores of one model in one metric.

    Attributes:
      model, metric: their names.
      value: of each row, in units of the metric.
      cell: 0 to 3.
      instruction, input: hash of each row's text, or its name where there is no hash.
      task: name of each row's task, "" where it has none.
      id: of each row.
      left_out: rows without a value or without a cell.
    """

    model: str
    metric: str
    value: Float64[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]
    instruction: np.ndarray
    input: np.ndarray
    task: np.ndarray
    id: np.ndarray
    left_out: int

    @property
    def tasks(self) -> np.ndarray | None:
        """Of each row, or None where not every row has one."""
        return self.task if len(self.task) and bool((self.task != "").all()) else None


def pick_scores(results: Results, model: str, metric: str) -> CellScores:
    """The scores of a model in a metric; higher must be better.

    Raises:
      UsageError: there are none, or their cells or ids are missing.
    """
    for name, known, wanted in (
        ("model", results.models, model),
        ("metric", results.metrics, metric),
    ):
        if wanted not in known:
            raise UsageError(
                f"no {name} {wanted!r:.80}", remedy=f"use one of {', '.join(known)[:400]}"
            )
    columns = results.columns
    mine = (columns["model"] == model) & (columns["metric"] == metric)
    usable: Bool[np.ndarray, " N"] = mine & np.isfinite(results.value) & (results.cell >= 0)
    if not usable.any():
        raise UsageError(
            f"no row of {model!r:.80} in {metric!r:.80} has a value and a `cell`",
            remedy="evaluate the eval.jsonl of `instructjax split`, whose rows have a cell",
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
        id=columns["id"][usable],
        left_out=int(mine.sum() - usable.sum()),
    )
