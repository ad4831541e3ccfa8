"""The instructions, inputs and tasks that hurt most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from instructjax.generalization.split_recipes import CELLS


@dataclass(frozen=True, kw_only=True)
class Group:
    """The scores of one instruction, one input or one task.

    Attributes:
      name: by which it is known.
      mean, count: of its scores, higher being better.
      rise: by how much the mean of all scores would rise without it.
      cells: the cells that it is in.
      task: of its rows, where they have one in common.
    """

    name: str
    mean: float
    count: int
    rise: float
    cells: tuple[str, ...]
    task: str


def find_worst(
    value: Float64[np.ndarray, " n"],
    names: np.ndarray,
    cell: np.ndarray,
    task: np.ndarray,
    *,
    limit: int = 8,
) -> list[Group]:
    """Groups without which the mean of all scores would be highest, worst first.

    Without the n scores of a group with mean m, the mean M of all N rises by n (M - m) / (N - n).

    >>> worst = find_worst(np.array([1.0, 1.0, 0.0]), np.array(["a", "a", "b"]),
    ...                    np.zeros(3, int), np.array(["t", "t", "t"]))
    >>> worst[0].name, round(worst[0].rise, 3)
    ('b', 0.333)
    """
    groups, of_row, counts = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    if len(groups) < 2:
        return []
    means = np.bincount(of_row, weights=value) / counts
    rises = counts * (value.mean() - means) / (len(value) - counts)
    worst = []
    for g in np.argsort(-rises, kind="stable")[:limit]:
        if rises[g] <= 0:
            break
        mine = of_row == g
        tasks = np.unique(task[mine].astype(str))
        worst.append(
            Group(
                name=str(groups[g]),
                mean=float(means[g]),
                count=int(counts[g]),
                rise=float(rises[g]),
                cells=tuple(CELLS[c] for c in np.unique(cell[mine])),
                task=str(tasks[0]) if len(tasks) == 1 else "",
            )
        )
    return worst
