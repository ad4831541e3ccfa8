"""The parts of a run that several processes do together: process 0 keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from instructjax.scoring.runs.parts import Parts, open_parts
from instructjax.scoring.tables.table import SCHEMA
from instructjax.sharding.processes import check_alike, leads, several, share


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
      UsageError: processes have other data, weights or options than process 0.
    """
    described = {**metadata, **inputs, "--out": str(out)}
    if not leads():
        check_alike(described)
        begun = share(None)
        done = dict(begun["done"])
        yield FollowedParts(done, begun["complete"])
        return
    with open_parts(out, metadata, inputs, overwrite=overwrite, schema=schema) as parts:
        if several():
            check_alike(described)
            share({"done": list(parts.done.items()), "complete": parts.complete})
        yield parts
