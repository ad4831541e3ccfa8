"""Rows that cannot be used: what is said about them, and the file they go to."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from instructjax.errors import DataError, remedy_for_writing

RAW_LIMIT = 2_000


class BadRow(Exception):
    """One row cannot be used; its text is the reason, "kind: detail; remedy"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A row that cannot be used, and why.

    Attributes:
      file: the file the row is in.
      row: its place, counted from 1: "line 12" (the line on which it starts), "record 7" of a
        JSON list, "row 7" of a Parquet file. "... and everything after" where the rest of the
        file is lost with it.
      reason: "kind: detail; remedy".
      raw: the row as text, cut to 2,000 characters; bytes that are not UTF-8 as \\xff.

    >>> Reject(file="a.jsonl", row="line 3", reason="no response: `output` is null").kind
    'no response'
    """

    file: str
    row: str
    reason: str
    raw: str = ""

    @property
    def kind(self) -> str:
        """The reason without its details, to count by."""
        return self.reason.partition(":")[0]


def shorten_raw(raw: object) -> str:
    """Returns a row as text that any UTF-8 file can hold, cut to 2,000 characters.

    >>> shorten_raw(b"caf\\xe9")
    'caf\\\\xe9'
    >>> shorten_raw({"output": 3})
    '{"output": 3}'
    """
    if isinstance(raw, bytes):
        return raw[: 4 * RAW_LIMIT].decode("utf-8", "backslashreplace")[:RAW_LIMIT]
    if isinstance(raw, str):
        # Surrogates stand for bytes that are not UTF-8 where text was read with surrogateescape.
        cut = raw[:RAW_LIMIT].encode("utf-8", "surrogatepass")
        return cut.decode("utf-8", "backslashreplace")[:RAW_LIMIT]
    return json.dumps(raw, ensure_ascii=False, default=str)[:RAW_LIMIT]


class RejectsFile:
    """Writes rejects to `<out>.rejects.jsonl`, one JSON object (file, row, reason, raw) a line.

    The file appears when the block ends without an exception, in place of one that an earlier
    run left; where nothing was rejected there is none. After an exception nothing has changed.

    Args:
      out: the output that the rejects belong to.
      written: False where another process writes the file: rejects are only counted.

    Raises:
      DataError: the file cannot be written, as on a full disk.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "scores.parquet"
    >>> with RejectsFile(out) as rejects:
    ...     rejects.write(Reject(file="a.csv", row="line 2", reason="no response: it is empty"))
    >>> rejects.total, dict(rejects.counts), rejects.path.name
    (1, {'no response': 1}, 'scores.parquet.rejects.jsonl')
    """

    def __init__(self, out: str | os.PathLike[str], *, written: bool = True) -> None:
        self._written = written
        self.path = Path(f"{os.fspath(out)}.rejects.jsonl")
        self.counts: Counter[str] = Counter()
        self.first = ""  # file, row and reason
        self._part = self.path.with_name(self.path.name + ".part")
        self._stream: IO[str] | None = None

    @property
    def total(self) -> int:
        """Rows written so far."""
        return self.counts.total()

    def write(self, reject: Reject) -> None:
        """Adds one reject and counts it by its kind."""
        self.counts[reject.kind] += 1
        self.first = self.first or f"{reject.file}, {reject.row}: {reject.reason}"
        if not self._written:
            return
        line = {"file": reject.file, "row": reject.row, "reason": reject.reason, "raw": reject.raw}
        with self._blaming():
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._part.open("w", encoding="utf-8", errors="backslashreplace")
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def summarize(self) -> str:
        """Returns one line for a person: how many rows, of which kinds, and where they are."""
        if not self.total:
            return "no rows rejected"
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common())
        noun = "row" if self.total == 1 else "rows"
        return f"{self.total} {noun} rejected ({kinds}): {self.path}"

    def __enter__(self) -> RejectsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._written:
            return
        try:
            with self._blaming():
                if self._stream is None:
                    if error is None:
                        self.path.unlink(missing_ok=True)
                    return
                with self._stream:
                    self._stream.flush()
                    os.fsync(self._stream.fileno())
                if error is None:
                    os.replace(self._part, self.path)
        finally:
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"the rejected rows cannot be written: {error.strerror or error}",
                file=self.path,
                remedy=f"{remedy_for_writing(error)} and run the same command again",
            ) from error
