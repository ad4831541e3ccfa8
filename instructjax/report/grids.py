"""Scores of each task as a grid of its instructions by its inputs, all of one size, with holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from instructjax.report.scores import CellScores

MOST_INSTRUCTIONS, MOST_INPUTS, MOST_TASKS = 64, 256, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskGrids:
    """Tasks in which inputs have several instructions.

    Attributes:
      tasks: names.
      instructions: of each task, in the order of the rows of its grid.
      score: mean of the rows of each (c, z); 0 where there is none.
      mask: where there is one.
      cell: of each (c, z), 0 to 3; 0 where there is none.
      cut: whether there was more than is kept: at most 64 instructions, 256 inputs, 64 tasks.
    """

    tasks: tuple[str, ...]
    instructions: tuple[tuple[str, ...], ...]
    score: Float64[np.ndarray, "T C Z"]
    mask: Bool[np.ndarray, "T C Z"]
    cell: Int[np.ndarray, "T C Z"]
    cut: bool


def make_grids(scores: CellScores) -> TaskGrids | None:
    """Grids of the inputs that two instructions of a task share; None where there are none."""
    tasks = scores.task if scores.tasks is not None else np.full(len(scores.value), "all rows")
    found, cut = [], False
    for task in np.unique(tasks.astype(str)):
        mine = np.flatnonzero(tasks == task)
        c_names, c = np.unique(scores.instruction[mine].astype(str), return_inverse=True)
        z_names, z = np.unique(scores.input[mine].astype(str), return_inverse=True)
        pairs = np.unique(np.stack([c, z]), axis=1)
        of_z = np.bincount(pairs[1], minlength=len(z_names))
        z_kept = np.flatnonzero(of_z > 1)
        z_kept = z_kept[np.argsort(-of_z[z_kept], kind="stable")]
        of_c = np.bincount(pairs[0][np.isin(pairs[1], z_kept)], minlength=len(c_names))
        c_kept = np.argsort(-of_c, kind="stable")[: int((of_c > 0).sum())]
        cut |= len(c_kept) > MOST_INSTRUCTIONS or len(z_kept) > MOST_INPUTS
        c_kept, z_kept = c_kept[:MOST_INSTRUCTIONS], z_kept[:MOST_INPUTS]
        if len(c_kept) < 2 or len(z_kept) < 2:
            continue
        total, count = np.zeros((2, len(c_names), len(z_names)))
        np.add.at(total, (c, z), scores.value[mine])
        np.add.at(count, (c, z), 1)
        cell = np.zeros(total.shape, int)
        cell[c, z] = scores.cell[mine]
        pick = np.ix_(c_kept, z_kept)
        names = tuple(c_names[c_kept].tolist())
        found.append((str(task), names, total[pick], count[pick], cell[pick]))
    if not found:
        return None
    cut |= len(found) > MOST_TASKS
    found = found[:MOST_TASKS]
    size = (len(found), *(max(one[2].shape[axis] for one in found) for axis in (0, 1)))
    score, mask, cells = np.zeros(size), np.zeros(size, bool), np.zeros(size, int)
    for t, (_, _, total, count, cell) in enumerate(found):
        here = np.s_[t, : total.shape[0], : total.shape[1]]
        score[here] = total / np.maximum(count, 1)
        mask[here] = count > 0
        cells[here] = cell
    return TaskGrids(
        tasks=tuple(one[0] for one in found),
        instructions=tuple(one[1] for one in found),
        score=score,
        mask=mask,
        cell=cells,
        cut=cut,
    )
