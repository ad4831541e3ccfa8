"""What a split tells, in words: what is new on the side of z, and what on the side of c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.generalization.divergence import MAX_ATOM_DIVERGENCE
from instructjax.generalization.split_recipes import SplitRecipe


@dataclass(frozen=True, kw_only=True)
class SplitWords:
    """How to speak of a split.

    The cells m0 to m3 are named by what is in them, the gaps between them otherwise, so that no
    name stands for both.

    Attributes:
      inputs: what unseen z are, after "over": "inputs".
      instructions: what unseen c are: "instructions", "new wordings of known tasks".
      intra, inter: names of the gaps between seen and unseen z, and seen and unseen c.
      cells: names of the four cells.
      unit: what a c is called: "instructions", or "wordings".
    """

    inputs: str
    instructions: str
    intra: str
    inter: str
    cells: tuple[str, str, str, str]
    unit: str


def describe_split(
    recipe: SplitRecipe | None, tasks: str = "unknown", atom_divergence: float | None = None
) -> SplitWords:
    """The words for a recipe.

    A split by instruction holds out texts, whatever their task: what that comes to depends on the
    tasks.

    Args:
      recipe: of the split; None where it is not known.
      tasks: of the unseen instructions, from `compare_tasks`.
      atom_divergence: of a compositional split: above 0.02 (Keysers et al. 2020) the words of the
        unseen texts are not those of the seen ones, and what is new is not their combination alone.

    >>> words = describe_split(SplitRecipe(by="paraphrase"))
    >>> words.instructions, words.inter, words.cells[2]
    ('new wordings of known tasks', 'wording gap', 'new wordings')
    >>> describe_split(None, "new").instructions, describe_split(None, "known").inter
    ('new tasks', 'wording gap')
    """
    by = "instruction" if recipe is None else recipe.by
    if by == "instruction":
        by = {"new": "task", "known": "paraphrase"}.get(tasks, by)
    inputs, intra, new_z = "inputs", "intra-task gap", "new inputs"
    instructions, inter, new_c = {
        "task": ("new tasks", "inter-task gap", "new tasks"),
        "category": ("new categories of tasks", "category gap", "new categories"),
        "paraphrase": ("new wordings of known tasks", "wording gap", "new wordings"),
    }.get(by, ("instructions", "inter-task gap", "new instructions"))
    if by == "compositional" and recipe is not None:
        if recipe.method == "length":
            what, gap, cell = "{0} longer than any known", "length gap", "longer {0}"
        elif has_other_words(atom_divergence):
            what, gap, cell = "other words in new combinations ({0})", "word gap", "reworded {0}"
        else:
            what, gap = "new combinations of known words ({0})", "combination gap"
            cell = "recombined {0}"
        if recipe.side == "input":
            inputs, intra, new_z = what.format("inputs"), gap, cell.format("inputs")
        else:
            instructions, inter = what.format("instructions"), gap
            new_c = cell.format("instructions")
    return SplitWords(
        inputs=inputs,
        instructions=instructions,
        intra=intra,
        inter=inter,
        cells=("training pairs", new_z, new_c, "both new"),
        unit="wordings" if by == "paraphrase" else "instructions",
    )


def has_other_words(atom_divergence: float | None) -> bool:
    """Whether unseen texts have words that seen ones do not, or not as often.

    >>> has_other_words(0.3), has_other_words(0.01), has_other_words(None)
    (True, False, False)
    """
    return atom_divergence is not None and atom_divergence > MAX_ATOM_DIVERGENCE


def compare_tasks(group: np.ndarray | None, cell: np.ndarray) -> str:
    """Whether the tasks (or categories) of unseen instructions are "new", "known", or "mixed".

    "unknown" without names, or where the seen or the unseen instructions have no scores.

    >>> cell = np.array([0, 1, 2, 3])
    >>> compare_tasks(np.array(["a", "a", "b", "b"]), cell), compare_tasks(np.zeros(4), cell)
    ('new', 'known')
    """
    unseen = cell >= 2
    if group is None or unseen.all() or not unseen.any():
        return "unknown"
    known: Any = np.isin(np.unique(group[unseen]), group[~unseen])
    if known.all():
        return "known"
    return "mixed" if known.any() else "new"
