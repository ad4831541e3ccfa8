"""A split as a folder: train.jsonl, eval.jsonl, leaks.jsonl, split.json; whole or not at all.

`crossed_split` makes one in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, UInt64

from instructjax.data import Example
from instructjax.data.text_hash import text_hash
from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.generalization import divergence
from instructjax.generalization.identity import to_key
from instructjax.generalization.split_recipes import CELLS, SplitRecipe
from instructjax.generalization.split_rows import SplitRows
from instructjax.generalization.splits import (
    RowKeys,
    assign_cells,
    choose_inputs,
    choose_instructions,
)

_NAMED_BY = {"task": "task", "paraphrase": "task", "category": "category"}
_FILES = ("train.jsonl", "eval.jsonl", "leaks.jsonl", "split.json")


def choose_cells(
    rows: SplitRows,
    keys: RowKeys,
    recipe: SplitRecipe,
    tasks: Mapping[str, bool] | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[Int8[np.ndarray, " N"], dict[str, Any]]:
    """The cell of every row, and what there is to tell about how they came to be.

    Args:
      rows, keys: what is split.
      recipe: how.
      tasks: whether each task is held out, by name: then they are, and not those that a fraction
        would take. Tasks that share an instruction text with one of them are held out too.
      on_progress: is told the share that is done of a search.

    Raises:
      DataError: no row names the task, or the category, that the split is by, or it is by length
        and all texts are equally long.
    """
    needed = _NAMED_BY.get(recipe.by)
    if tasks is None and needed is not None and 0 < len(rows) == rows.unnamed[needed]:
        raise DataError(
            f"no row has a `{needed}`, which a split by {recipe.by} needs",
            remedy=f"name its column with --field {needed}=COLUMN, or split --by instruction",
        )
    told: dict[str, Any] = {}
    if tasks is not None:
        names = [to_key(text_hash(f"task {task}")) for task, unseen in tasks.items() if unseen]
        held = np.unique(keys.instruction[np.isin(keys.task, np.array(names, np.uint64))])
    else:
        held = choose_instructions(keys, recipe)
    unseen_inputs = choose_inputs(keys, recipe)
    if recipe.by == "compositional":
        chosen, told = _choose_compositional(rows, recipe, on_progress)
        held, unseen_inputs = (held, chosen) if recipe.side == "input" else (chosen, unseen_inputs)
    return assign_cells(keys, held, unseen_inputs), told


def crossed_split(
    examples: Iterable[Example], recipe: SplitRecipe | None = None
) -> Int8[np.ndarray, " N"]:
    """The cell of every example in memory: what `instructjax split` does, without its files.

    Args:
      examples: with texts; what c and z are is told by their normalized texts, not by names.
      recipe: which levels are held out, and how much of them; default: `SplitRecipe()`.

    Returns:
      0 seen c and z (to train on), 1 unseen z (the book's intra-task test), 2 unseen c, 3 both (its
      inter-task test).

    Raises:
      BadRow: an example is given as token ids, or has no instruction.

    >>> rows = [Example(instruction=f"Say {c}.", input=f"word {z}", output="!", task=f"task {c}")
    ...         for c in range(4) for z in range(5)]
    >>> cell = crossed_split(rows, SplitRecipe(by="task", fraction_unseen_instructions=0.25))
    >>> np.bincount(cell).tolist()  # 3 of 4 tasks and 4 of 5 inputs are seen
    [12, 3, 4, 1]
    """
    recipe = recipe or SplitRecipe()
    with (
        TemporaryDirectory() as folder,
        SplitRows(Path(folder) / "rows", fold_case=recipe.fold_case) as rows,
    ):
        for example in examples:
            rows.add(example)
        return choose_cells(rows, rows.keys(), recipe)[0]


def _choose_compositional(
    rows: SplitRows, recipe: SplitRecipe, on_progress: Callable[[float], None]
) -> tuple[UInt64[np.ndarray, " H"], dict[str, Any]]:
    on_input = recipe.side == "input"
    fraction = recipe.fraction_unseen_inputs if on_input else recipe.fraction_unseen_instructions
    side = rows.side(int(on_input))
    texts = list(rows.texts.read(side.numbers))
    if recipe.method == "length":
        test, shortest = divergence.split_by_length(texts, fraction=fraction)
        if not test.any():
            other = "instruction" if on_input else "input"
            raise DataError(
                f"all {recipe.side}s have the same length, {shortest - 1} words: none is longer",
                remedy=f"split --method mcd, or --side {other}",
            )
        return side.keys[test], {"words_of_shortest_unseen": shortest}
    found = divergence.split_by_divergence(
        *divergence.list_atoms_and_compounds(texts),
        side.keys,
        fraction=fraction,
        seed=recipe.seed,
        on_progress=on_progress,
    )
    names = ("atom_divergence", "compound_divergence")
    told = {name: round(getattr(found, name), 6) for name in names}
    told |= {f"random_{name}": round(getattr(found, f"start_{name}"), 6) for name in names}
    return side.keys[found.test], told


def count_cells(
    keys: RowKeys, cell: Int8[np.ndarray, " N"], kept: Bool[np.ndarray, " N"]
) -> dict[str, dict[str, int]]:
    """Rows, distinct instructions, inputs and tasks of each cell, among those kept."""
    counts = {}
    for number, name in enumerate(CELLS):
        inside = kept & (cell == number)
        counts[name] = {
            "rows": int(inside.sum()),
            "instructions": len(np.unique(keys.instruction[inside])),
            "inputs": len(np.unique(keys.input[inside])),
            "tasks": len(np.unique(keys.task[inside])),
        }
    return counts


def write_split(
    folder: Path,
    rows: SplitRows,
    cell: Int8[np.ndarray, " N"],
    evaluated: Bool[np.ndarray, " N"],
    leaks: tuple[dict[str, Any], ...],
    description: Mapping[str, Any],
) -> None:
    """Writes the files of a split into a folder; rows in an order that what they say decides."""
    order = rows.order()

    def name_cell(row: dict[str, Any], place: int) -> dict[str, Any]:
        return row | {"cell": CELLS[cell[place]]}

    rows.write(folder / "train.jsonl", order[cell[order] == 0])
    rows.write(folder / "eval.jsonl", order[evaluated[order]], name_cell)
    with (folder / "leaks.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(leak, ensure_ascii=False) + "\n" for leak in leaks)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / "split.json").write_text(text, encoding="utf-8")


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Checks, before any work is done, that a split can be put there.

    Raises:
      UsageError: there is something already, and it is not an earlier split to overwrite.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError("is no folder", file=folder, remedy="give the name of a new folder")
    inside = {path.name for path in folder.iterdir()}
    if inside and not (overwrite and inside <= set(_FILES)):
        remedy = "give another name" if inside - set(_FILES) else "replace it with --overwrite"
        raise UsageError("exists already", file=folder, remedy=remedy)


@contextmanager
def stage_folder(folder: Path) -> Iterator[Path]:
    """Gives a hidden folder beside the one wanted, which takes its place at the end of the block.

    After an exception nothing has changed.

    Raises:
      DataError: it cannot be written, as on a full disk.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        staged.mkdir(parents=True)
        yield staged
        for path in staged.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            os.replace(folder, old)
        os.replace(staged, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise DataError(
            f"the split cannot be written: {error.strerror or error}",
            file=folder,
            remedy=f"{remedy_for_writing(error)} and run the same command again",
        ) from error
    finally:
        for path in (staged, old):
            shutil.rmtree(path, ignore_errors=True)
