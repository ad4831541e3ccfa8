"""At which level does a model generalize? From scores with ids to numbers and a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from instructjax.errors import DataError, UsageError
from instructjax.generalization.bootstrap import bootstrap_records, percentile_interval
from instructjax.generalization.cells import (
    CELLS,
    CONTRASTS,
    Weights,
    cell_influence,
    cell_weights,
)
from instructjax.generalization.contrasts import contrast_se, count_in_cells
from instructjax.generalization.planning import clusters_to_halve
from instructjax.generalization.quantiles import student_t_quantile
from instructjax.generalization.verdict_words import Answer, Level, find_level, put_in_words

# Whether the clusters of a way (instructions, inputs, tasks) are seen ones in each cell.
_SEEN = ((True, True, False, False), (True, False, True, False), (True, True, False, False))
_WITHOUT_CELL_2 = (0, 1, 0, -1)
_WITHOUT_CELL_0 = (0, 0, 1, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval, in units of the score.

    Attributes:
      estimate: the number.
      low, high: the interval's ends; infinite where there are 0 degrees of freedom.
      se: standard error, robust to clusters of instructions, inputs and tasks.
      df: degrees of freedom of Student's t.
      contrast: what it is of the cell means m0 to m3, as "m0 - m1".
    """

    estimate: float
    low: float
    high: float
    se: float
    df: float
    contrast: str

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.estimate:.2f} +- {self.half_width:.2f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GapEstimates:
    """The gaps, positive where the unseen is worse; None where a cell they need has no scores.

    Attributes:
      intra: m0 - m1, the price of new inputs (m2 - m3 without scores in cell 0 or 1).
      inter: m0 - m2, the price of new instructions (m1 - m3 without scores in cell 0 or 2).
      joint: m0 - m3.
      interaction: m0 - m1 - m2 + m3.
    """

    intra: Estimate | None
    inter: Estimate | None
    joint: Estimate | None
    interaction: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Analysis:
    """What `analyze` found.

    Attributes:
      means: of the four cells, in units of the score; 0 in a cell without scores.
      counts: scores in each cell.
      num_instructions, num_inputs, num_tasks: different ones in each cell; tasks only if given.
      cells: each mean with its interval; None without scores.
      gaps: with their intervals.
      bootstrap: ends of the percentile intervals of the four gaps (product weights), [4, 2], in
        the order of `gaps`; None without a key. Where a gap is None it means nothing.
      inputs, instructions, both: whether it generalizes over them, and over both at once.
      level: what follows.
      verdict: in words, with the numbers.
      unit: what was drawn to represent new instructions: "instructions", or "tasks" if given.
      more_instructions_needed: how many more unseen ones (of `unit`) would halve the interval of
        the inter-task gap; None if there is none, or more of them alone cannot.
      confidence: level of the intervals.
      smallest_gap, threshold: as given.
    """

    means: Float[np.ndarray, " 4"]
    counts: Integer[np.ndarray, " 4"]
    num_instructions: Integer[np.ndarray, " 4"]
    num_inputs: Integer[np.ndarray, " 4"]
    num_tasks: Integer[np.ndarray, " 4"] | None
    cells: tuple[Estimate | None, ...]
    gaps: GapEstimates
    bootstrap: Float[np.ndarray, "4 2"] | None
    inputs: Answer
    instructions: Answer
    both: Answer
    level: Level
    verdict: str
    unit: Literal["instructions", "tasks"]
    more_instructions_needed: int | None
    confidence: float
    smallest_gap: float
    threshold: float | None
