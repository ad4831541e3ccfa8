"""`instructjax split`: from a data file to a folder with a split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import instructjax
from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.split import Split
from instructjax.cli.steps import show_step
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.data.fields import parse_fields
from instructjax.data.files import find_files
from instructjax.data.rejects import BadRow, shorten_raw
from instructjax.errors import DataError, UsageError
from instructjax.generalization.leaks import LeakRules
from instructjax.generalization.official_split import find_task_split, read_task_split
from instructjax.generalization.split_folder import (
    check_folder,
    choose_cells,
    count_cells,
    stage_folder,
    write_split,
)
from instructjax.generalization.split_leaks import SplitLeaks, find_split_leaks
from instructjax.generalization.split_recipes import CELLS, SplitRecipe
from instructjax.generalization.split_rows import SplitRows
from instructjax.generalization.split_words import has_other_words
from instructjax.generalization.splits import choose_evaluated

_RECIPE = ("by", "fraction_unseen_instructions", "fraction_unseen_inputs", "seed", "fold_case")
_RECIPE += ("method", "side", "max_per_task")


def run_split(options: Split) -> int:
    """Splits a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no split; see the message. Nothing was written.
    """
    recipe = SplitRecipe(**{name: getattr(options, name) for name in _RECIPE})
    rules = LeakRules(cover=options.leak_cover, similarity=options.leak_similarity)
    tasks = _read_preset(options)
    check_folder(options.out, overwrite=options.overwrite)
    _check_apart(options.data, options.out)
    with (
        RejectsFile(options.out) as rejects,
        stage_folder(options.out) as staged,
        SplitRows(staged / "rows", fold_case=recipe.fold_case) as rows,
    ):
        _read(options, rows, rejects, tasks)
        keys = rows.keys()
        with show_step("dividing") as tell:
            cell, told = choose_cells(rows, keys, recipe, tasks, tell)
        _warn_of_unnamed(rows, recipe.by)
        evaluated = choose_evaluated(keys, cell, recipe)
        _check_cells(cell, evaluated)
        found = SplitLeaks(records=(), rows=np.zeros(len(cell), bool), summary={})
        if options.leaks != "off":
            with show_step("looking for leaks") as tell:
                found = find_split_leaks(rows, cell, evaluated, rules, on_progress=tell)
        if options.leaks == "remove":
            evaluated &= ~found.rows
            _check_cells(cell, evaluated)
            for place in np.flatnonzero(found.rows & (cell > 0)).tolist():
                rejects.write(_make_reject(options, rows.read(place)))
        description = {
            "instructjax": instructjax.__version__,
            "recipe": recipe.to_json(),
            "preset": options.preset,
            "rows": len(rows),
            "fingerprint": rows.fingerprint(),
            "train": count_cells(keys, cell, cell == 0)[CELLS[0]],
            "eval": count_cells(keys, cell, evaluated),
            **({"compositional": told} if told else {}),
            "leaks": {"action": options.leaks, "rules": vars_of(rules), **found.summary},
            "rejected": dict(sorted(rejects.counts.items())),
        }
        write_split(staged, rows, cell, evaluated, found.records, description)
    _show(options, description, rejects)
    _warn_of_words(options.side, told)
    return 0


def vars_of(rules: LeakRules) -> dict[str, Any]:
    """The rules as JSON."""
    return {name: getattr(rules, name) for name in ("short", "long", "cover", "similarity")}


def _read_preset(options: Split) -> dict[str, bool] | None:
    if options.preset == "none":
        if options.split_file is None:
            return None
        raise UsageError(
            "--split-file goes with --preset superni-official", remedy="give both, or neither"
        )
    file = options.split_file or find_task_split(options.data)
    if file is None:
        raise UsageError(
            "the preset needs the lists of tasks; no splits/default is in the data or beside it",
            remedy="give --split-file: splits/default of "
            "https://github.com/allenai/natural-instructions, or a .jsonl with task and split",
        )
    return read_task_split(file)


def _check_apart(data: Path, out: Path) -> None:
    folder = os.path.realpath(out)
    for file in find_files(data):
        if os.path.realpath(file).startswith(folder + os.sep):
            raise UsageError(
                "is data within the folder to write", file=file, remedy="choose another --out"
            )


def _read(
    options: Split, rows: SplitRows, rejects: RejectsFile, tasks: Mapping[str, bool] | None
) -> None:
    """Takes all rows; a list of test tasks alone lets every other task be trained on."""
    complete = tasks is not None and False in tasks.values()
    total = estimate_rows(options.data)
    examples = read_examples(
        options.data, format=options.format, fields=parse_fields(options.field)
    )
    with show_step("reading") as tell:
        for number, row in enumerate(examples):
            if number % 1024 == 0:
                tell(2.0 if not total else number / total)
            if isinstance(row, Reject):
                rejects.write(row)
                continue
            try:
                if tasks is not None and row.task is None:
                    raise BadRow("no task: the preset holds out tasks; give `task`")
                if complete and row.task not in (tasks or {}):
                    raise BadRow(f"not in the split: task {row.task!r:.80} is in no list")
                rows.add(row)
            except BadRow as bad:
                rejects.write(_reject_example(row, str(bad)))
    if not len(rows):
        raise DataError(
            f"no row can be used ({dict(rejects.counts)})", file=options.data, remedy="see --format"
        )


def _warn_of_unnamed(rows: SplitRows, by: str) -> None:
    whose = {"task": ("task", "instruction"), "paraphrase": ("task", "instruction")}
    whose["category"] = ("category", "task")
    name, instead = whose.get(by, ("", ""))
    if name and (count := rows.unnamed[name]):
        say_error(
            f"{count:,} rows have no `{name}`: each {instead} of theirs counts as one of its own",
            label="warning: ",
        )


def _warn_of_words(side: str, told: Mapping[str, Any]) -> None:
    value = told.get("atom_divergence", 0.0)
    if has_other_words(value):
        say_error(
            f"unseen {side}s have other words too, not only new combinations of known ones: atom "
            f"divergence {value:.2f}, where 0.02 is allowed (Keysers et al. 2020). Reports will "
            "say so; give texts made of fewer different words, or more of them",
            label="warning: ",
        )


def _reject_example(row: Example, reason: str) -> Reject:
    file, place = row.place or ("", row.id or "")
    raw = shorten_raw({"id": row.id, "instruction": row.instruction, "input": row.input})
    return Reject(file=file, row=place, reason=reason, raw=raw)


def _make_reject(options: Split, row: dict[str, Any]) -> Reject:
    reason = "leak: its unseen text is in the training rows; see leaks.jsonl"
    return Reject(file=str(options.data), row=row["id"], reason=reason, raw=shorten_raw(row))


def _check_cells(cell: np.ndarray, evaluated: np.ndarray) -> None:
    counts = Counter(CELLS[c] for c in cell[evaluated | (cell == 0)].tolist())
    if not counts[CELLS[0]] or not (evaluated & (cell > 0)).any():
        missing = "train on" if not counts[CELLS[0]] else "evaluate: nothing is unseen"
        raise DataError(
            f"there are no rows to {missing}",
            remedy="change --by or the fractions, or give more instructions and inputs",
        )


def _show(options: Split, description: Mapping[str, Any], rejects: RejectsFile) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "rows", "instructions", "inputs", "tasks"):
        table.add_column(name, justify="right" if name else "left")
    for name, counts in {"train": description["train"], **description["eval"]}.items():
        table.add_row(name, *(f"{counts[column]:,}" for column in list(counts)))
    Console().print(table)
    if told := description.get("compositional"):
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items()))
    empty = [name for name in CELLS[1:] if not description["eval"][name]["rows"]]
    if empty:
        say_error(
            f"no rows in {' and '.join(empty)}: no such pairs of c and z are in the data",
            label="warning: ",
        )
    for side in ("instruction", "input"):
        if counts := description["leaks"].get(side):
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts["kinds"].items())
            compared = f"{counts['compared']:,} unseen {side}s"
            print(f"leaks: {counts['leaked']:,} of {compared}{f' ({kinds})' if kinds else ''}")
    left = f"left out {rejects.total:,} rows" if rejects.total else "nothing was left out"
    print(escape_controls(f"split {description['rows']:,} rows into {options.out}; {left}"))
    if rejects.total:
        say_error(rejects.summarize(), label="warning: ")
