"""The 2 x 2 grid: seen and unseen instructions c by seen and unseen inputs z."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64

from instructjax.generalization.identity import mix
from instructjax.generalization.split_recipes import SplitRecipe

Keys = UInt64[np.ndarray, " N"]
_INSTRUCTIONS, _INPUTS, _ROWS, _TRAINING_PAIRS = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class RowKeys:
    """What rows are known by, one value a row: 64 bits of the hash of a normalized text or name.

    Attributes:
      instruction, input, task, category: of each row. A row without a task is a task of its own
        instruction, one without a category a category of its own task.
      content: of all that the row says, for an order that is no accident.
      no_input: whether z is empty. An empty z cannot be new.
    """

    instruction: Keys
    input: Keys
    task: Keys
    category: Keys
    content: Keys
    no_input: Bool[np.ndarray, " N"]


def hold_out(
    keys: UInt64[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    fraction: float,
    seed: int,
) -> Bool[np.ndarray, " n"]:
    """Marks a fraction of the keys of every group, at least one and never all of two or more.

    Which ones depends on the keys and the seed, not on their order. A group of one key keeps it.

    >>> keys = np.arange(10, dtype=np.uint64)
    >>> marked = hold_out(keys, np.repeat([0, 1], [8, 2]), 0.25, seed=0)
    >>> int(marked[:8].sum()), int(marked[8:].sum())
    (2, 1)
    """
    if not len(keys) or fraction == 0:
        return np.zeros(len(keys), bool)
    order = np.lexsort((mix(keys, seed), groups))
    _, start, count = np.unique(groups[order], return_index=True, return_counts=True)
    wanted = np.clip(np.round(fraction * count).astype(int), 1, np.maximum(count - 1, 0))
    marked = np.zeros(len(keys), bool)
    marked[order] = np.arange(len(keys)) - np.repeat(start, count) < np.repeat(wanted, count)
    return marked


def join_groups(
    units: UInt64[np.ndarray, " N"], *groups: UInt64[np.ndarray, " N"]
) -> tuple[UInt64[np.ndarray, " U"], Int[np.ndarray, " U"], UInt64[np.ndarray, " G"]]:
    """Distinct units, and which of the groups that share no unit each belongs to.

    Returns:
      The units, sorted; the number of each one's joined group; a key of each joined group.

    >>> texts, tasks = (np.array(x, np.uint64) for x in ([1, 2, 2, 3], [7, 7, 8, 9]))
    >>> units, joined, _ = join_groups(texts, tasks)
    >>> units.tolist(), joined.tolist()
    ([1, 2, 3], [0, 0, 1])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, unit = np.unique(units, return_inverse=True)
    offset, ends = len(unique), [(unit, unit)]
    for group in groups:
        names, index = np.unique(group, return_inverse=True)
        ends.append((unit, index + offset))
        offset += len(names)
    rows, columns = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(offset, offset))
    labels = connected_components(graph, directed=False)[1][: len(unique)]
    _, first, joined = np.unique(labels, return_index=True, return_inverse=True)
    return unique, joined, unique[first]


def choose_instructions(rows: RowKeys, recipe: SplitRecipe) -> UInt64[np.ndarray, " H"]:
    """Keys of the instructions that are held out."""
    fraction, seed = recipe.fraction_unseen_instructions, recipe.seed + _INSTRUCTIONS
    if recipe.by in ("instruction", "compositional"):
        units = np.unique(rows.instruction)
        return units[hold_out(units, np.zeros(len(units), int), fraction, seed)]
    groups = (rows.task, rows.category) if recipe.by == "category" else (rows.task,)
    units, joined, names = join_groups(rows.instruction, *groups)
    if recipe.by == "paraphrase":
        return units[hold_out(units, joined, fraction, seed)]
    return units[hold_out(names, np.zeros(len(names), int), fraction, seed)[joined]]


def choose_inputs(rows: RowKeys, recipe: SplitRecipe) -> UInt64[np.ndarray, " H"]:
    """Keys of the inputs that are held out: a fraction of those of every task.

    An input that several tasks have counts for one of them, and has one fate.
    """
    order = np.lexsort((rows.task, rows.input))
    units, first = np.unique(rows.input[order], return_index=True)
    home = np.unique(rows.task[order][first], return_inverse=True)[1]
    return units[hold_out(units, home, recipe.fraction_unseen_inputs, recipe.seed + _INPUTS)]


def assign_cells(
    rows: RowKeys,
    unseen_instructions: UInt64[np.ndarray, " H"],
    unseen_inputs: UInt64[np.ndarray, " K"],
) -> Int8[np.ndarray, " N"]:
    """The cell of every row, by what the training rows really hold; see `CELLS` for the numbers.

    Rows whose c and z are both not held out are trained on (cell 0). Any other row is judged
    against them: an instruction that was not held out, but whose inputs all were, is unseen.

    >>> key = lambda *x: np.array(x, np.uint64)
    >>> no = np.zeros(4, bool)
    >>> rows = RowKeys(instruction=key(1, 1, 2, 2), input=key(5, 6, 5, 6), task=key(0, 0, 0, 0),
    ...                category=key(0, 0, 0, 0), content=key(1, 2, 3, 4), no_input=no)
    >>> assign_cells(rows, key(2), key(6)).tolist()
    [0, 1, 2, 3]
    """
    train = ~np.isin(rows.instruction, unseen_instructions)
    train &= rows.no_input | ~np.isin(rows.input, unseen_inputs)
    seen_c = np.isin(rows.instruction, rows.instruction[train])
    seen_z = rows.no_input | np.isin(rows.input, rows.input[train])
    return (2 * ~seen_c + ~seen_z).astype(np.int8)


def choose_evaluated(
    rows: RowKeys, cell: Int8[np.ndarray, " N"], recipe: SplitRecipe
) -> Bool[np.ndarray, " N"]:
    """Which rows are evaluated: all of the unseen cells up to `max_per_task`, and of the training
    rows as many as the largest unseen cell has, so that the fit on them is known."""
    marked = cell > 0
    order = mix(rows.content, recipe.seed + _ROWS)
    if recipe.max_per_task is not None:
        task = np.unique(rows.task, return_inverse=True)[1] * 4 + cell
        marked &= _rank_within(task, order) < recipe.max_per_task
    largest = np.bincount(cell[marked], minlength=4).max()
    training = np.flatnonzero(cell == 0)
    shuffled = mix(rows.content[training], recipe.seed + _TRAINING_PAIRS)
    _, task, count = np.unique(rows.task[training], return_inverse=True, return_counts=True)
    # Tasks alternate in proportion to their rows, so that the sample has the tasks of the whole.
    turn = (_rank_within(task, shuffled) + 0.5) / count[task]
    marked[training[np.lexsort((shuffled, turn))[:largest]]] = True
    return marked


def _rank_within(
    groups: Int[np.ndarray, " N"], order: UInt64[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """The place of each row among those of its group, by `order`."""
    by = np.lexsort((order, groups))
    _, start, count = np.unique(groups[by], return_index=True, return_counts=True)
    rank = np.empty(len(groups), int)
    rank[by] = np.arange(len(groups)) - np.repeat(start, count)
    return rank
