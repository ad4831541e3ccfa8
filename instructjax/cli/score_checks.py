"""Rows that `instructjax score` cannot use: what is said of them, and checks before the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from instructjax.cli.messages import say_error
from instructjax.data import Example, Reject
from instructjax.data.files import find_files
from instructjax.data.unusable import make_reject
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.sharding.processes import tick

SHOWN_REASONS = 5


def check_all(rows: Iterator[Example | Reject], encode: Callable[[Example], object]) -> bool:
    """Whether every row can be scored; says on standard error which cannot."""

    def find() -> Iterator[Reject]:
        for row in rows:
            tick()  # others wait for this process alone
            if isinstance(row, Reject):
                yield row
                continue
            try:
                encode(row)
            except (DataError, PromptError) as error:
                yield make_reject(row, error)

    found = find()
    first = list(islice(found, SHOWN_REASONS))
    if not first:
        return True
    count = len(first) + sum(1 for _ in found)
    noun = "1 row" if count == 1 else f"{count:,} rows"
    say_error(f"{noun} cannot be used; with --strict nothing is scored or written")
    for reject in first:
        say_error(f"{reject.file}, {reject.row}: {reject.reason}", label="  ")
    if count > len(first):
        say_error(f"and {count - len(first):,} more", label="  ")
    return False


def check_apart(data: Path, out: Path) -> None:
    """Refuses to write where it reads.

    Raises:
      UsageError: the table, its rejects or its metadata would replace a data file, or be data of
        the next run.
    """
    if data.is_dir() and Path(os.path.realpath(data)) in Path(os.path.realpath(out)).parents:
        raise UsageError(
            f"is within the folder of the data, {data}, and would be read as data the next time",
            file=out,
            remedy="choose an --out beside it",
        )
    written = {os.path.realpath(path) for path in (out, f"{out}.rejects.jsonl", f"{out}.meta.json")}
    for file in find_files(data):
        if os.path.realpath(file) in written:
            raise UsageError(
                "is data and would be overwritten", file=file, remedy="choose another --out"
            )
