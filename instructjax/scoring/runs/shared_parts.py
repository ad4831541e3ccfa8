"""The parts of a run that several processes do together: process 0 keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from instructjax.errors import DataError
from instructjax.scoring.runs.parts import Parts, open_parts
from instructjax.scoring.tables.table import SCHEMA
from instructjax.sharding.processes import leads, several, share


class FollowedParts:
    """What a process knows of the parts that process 0 keeps.

    Attributes:
      done, complete: see `Parts`.
    """

    def __init__(self, done: Mapping[int, int], complete: bool) -> None:
        self.done, self.complete = dict(done), complete

    @property
    def rows(self) -> int:
        """Rows of the input that were done when the run began."""
        return sum(stop - first for first, stop in self.done.items())

    def add(self, *args: Any) -> None:
        """Does nothing: process 0 has the same scores, and writes them."""


@contextmanager
def open_shared_parts(
    out: Path,
    metadata: Mapping[str, str],
    inputs: Mapping[str, str],
    *,
    overwrite: bool = False,
    schema: pa.Schema = SCHEMA,
) -> Iterator[Parts | FollowedParts]:
    """`open_parts`, in process 0; in another what it has found there.

    Raises:
      DataError: this process has other data, weights or options than process 0.
    """
    if not leads():
        begun = share(None)
        here = {**metadata, **inputs}
        names = [n for n in {**begun["run"], **here} if begun["run"].get(n) != here.get(n)]
        if names:
            told = "; ".join(
                f"{n}: {here.get(n)!s:.60}, not {begun['run'].get(n)!s:.60}" for n in names
            )
            raise DataError(
                f"this process would do something else than process 0 ({told})",
                remedy="give all the same command, data, weights and version",
            )
        done = {first: stop for first, stop in begun["done"]}
        yield FollowedParts(done, begun["complete"])
        return
    with open_parts(out, metadata, inputs, overwrite=overwrite, schema=schema) as parts:
        if several():
            share(
                {
                    "run": {**metadata, **inputs},
                    "done": list(parts.done.items()),
                    "complete": parts.complete,
                }
            )
        yield parts
