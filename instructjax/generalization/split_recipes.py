"""What a split is to be: the recipe, checked, and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from instructjax.errors import UsageError

By = Literal["instruction", "task", "category", "paraphrase", "compositional"]
Method = Literal["mcd", "length"]
Side = Literal["input", "instruction"]

# In the order of the 2 x 2 grid; the place is the number that `assign_cells` gives.
CELLS = ("seen_c_seen_z", "seen_c_unseen_z", "unseen_c_seen_z", "unseen_c_unseen_z")


@dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """How rows are divided into what is trained on and three ways of being new.

    Attributes:
      by: what is held out on the side of c. `instruction`: distinct instruction texts, of whatever
        task. `paraphrase`: some wordings of every task that has several; each task stays seen.
        `task`: whole tasks. `category`: whole categories. `compositional`: new combinations of
        known words, see `method` and `side`. Tasks or categories that share an instruction text
        are held out together: a text cannot be seen and unseen.
      fraction_unseen_instructions: of the units of `by`, 0 to 1.
      fraction_unseen_inputs: of the distinct inputs, within every task.
      seed: of the shuffle.
      fold_case: let texts that differ only in case be the same.
      method: for `compositional`, `length` (the longest are unseen) or `mcd` (maximum compound
        divergence: bigrams are new, their words are not, as far as the texts allow it).
      side: for `compositional`, whether inputs or instructions are divided so.
      max_per_task: evaluated rows of a task in a cell, at most.

    >>> SplitRecipe(by="task", fraction_unseen_inputs=1.0)
    Traceback (most recent call last):
    instructjax.errors.UsageError: fraction_unseen_inputs is 1.0; give 0 or more, and less than 1
    """

    by: By = "instruction"
    fraction_unseen_instructions: float = 0.2
    fraction_unseen_inputs: float = 0.2
    seed: int = 0
    fold_case: bool = False
    method: Method = "mcd"
    side: Side = "input"
    max_per_task: int | None = None

    def __post_init__(self) -> None:
        for name in ("fraction_unseen_instructions", "fraction_unseen_inputs"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UsageError(f"{name} is {value}", remedy="give 0 or more, and less than 1")
        for name, kind in (("by", By), ("method", Method), ("side", Side)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise UsageError(f"unknown {name} {getattr(self, name)!r}", remedy=f"use {known}")
        if self.max_per_task is not None and self.max_per_task < 1:
            raise UsageError(f"max_per_task is {self.max_per_task}", remedy="give 1 or more")

    def to_json(self) -> dict[str, Any]:
        """All that decides about the split beside the rows."""
        return dataclasses.asdict(self)
