"""What `analyze` finds: gaps with intervals, the level, a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

from instructjax.generalization.estimate import Estimate
from instructjax.generalization.verdict_words import Answer, Level


@dataclass(frozen=True, kw_only=True, slots=True)
class GapEstimates:
    """The gaps, positive where the unseen is worse; None where a cell they need has no scores.

    Attributes:
      intra: m0 - m1, the price of new inputs (m2 - m3 without scores in cell 0 or 1).
      inter: m0 - m2, the price of new instructions (m1 - m3 without scores in cell 0 or 2, or where
        few of the unseen instructions are in cell 2; see `analyze`).
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
      more_in_proportion_needed: how many would then, with seen ones added in proportion; else None.
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
    more_in_proportion_needed: int | None
    confidence: float
    smallest_gap: float
    threshold: float | None
