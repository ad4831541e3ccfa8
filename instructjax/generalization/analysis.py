"""What `analyze` finds: gaps with intervals, the level, a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from instructjax.generalization.estimate import Estimate
from instructjax.generalization.split_words import SplitWords
from instructjax.generalization.verdict_advice import Needed
from instructjax.generalization.verdict_words import Answer, Better, Level


@dataclass(frozen=True, kw_only=True, slots=True)
class GapEstimates:
    """The gaps, positive where the unseen is worse; None where a cell they need has no scores.

    Where lower scores are better, all are the other way round: m1 - m0 and so on.

    Attributes:
      intra: m0 - m1, the price of new inputs (m2 - m3 without scores in cell 0 or 1).
      inter: m0 - m2, the price of new instructions (m1 - m3 without scores in cell 0 or 2, or where
        few of the unseen instructions are in cell 2; see `analyze`).
      joint: m0 - m3.
      interaction: m0 - m1 - m2 + m3, what intra and inter make together minus the joint gap.
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
      bootstrap: ends of the four gaps' bootstrap intervals (`rescaled_interval`), [4, 2], in
        the order of `gaps`; None without a key. Where a gap is None it means nothing.
      inputs, instructions, both: whether it generalizes over them, and over both at once.
      level: what follows.
      headline: in words.
      numbers: "intra-task gap 0.021 +- 0.013" and the like, that it is told with.
      words: how to speak of the split.
      unit: what was drawn to represent new instructions: "instructions" ("wordings"), or "tasks" or
        "categories" if given.
      needed: by gap (intra, inter, joint), what would halve its interval; None if not measured.
      confidence: level of the intervals.
      smallest_gap, threshold, better: as given.
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
    headline: str
    numbers: tuple[str, ...]
    words: SplitWords
    unit: str
    needed: Mapping[str, Needed | None]
    confidence: float
    smallest_gap: float
    threshold: float | None
    better: Better

    @property
    def verdict(self) -> str:
        """The headline with its numbers."""
        return ": ".join([self.headline, *([", ".join(self.numbers)] if self.numbers else [])])
