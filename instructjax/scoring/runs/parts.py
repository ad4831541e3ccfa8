"""A long run as parts on disk, so that it can be stopped at any moment and go on; see `folder`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.scoring.runs.folder import (
    check_ours,
    clear_folder,
    find_parts,
    folder_of,
    is_finished,
    part_file,
    remove_folder,
)
from instructjax.scoring.runs.lock import hold_lock
from instructjax.scoring.runs.manifest import check_same, digest_file, read_json
from instructjax.scoring.tables.disk import sync_folder, to_disk, write_whole
from instructjax.scoring.tables.files import describe_metadata, sidecar_of
from instructjax.scoring.tables.table import SCHEMA
from instructjax.scoring.tables.writers import WRITERS


class Parts:
    """The finished parts of one run; made by `open_parts`.

    Attributes:
      done: the index of each part's first row of the input to that after its last.
      complete: the table is there already; nothing is left to do.
    """

    def __init__(
        self,
        out: Path,
        metadata: Mapping[str, str],
        run: Mapping[str, str],
        overwrite: bool,
        schema: pa.Schema,
    ) -> None:
        self._out, self._metadata, self._run, self._overwrite = out, metadata, run, overwrite
        self._schema = schema
        self._folder = folder_of(out)
        self.done: dict[int, int] = {}
        self.complete = False

    @property
    def rows(self) -> int:
        """Rows of the input that are done."""
        return sum(stop - first for first, stop in self.done.items())

    def add(
        self, first: int, stop: int, records: Iterable[Mapping[str, Any]], note: Mapping[str, Any]
    ) -> None:
        """Keeps a part; when this returns, it is on disk.

        Args:
          first, stop: which rows of the input it covers.
          records: of the table.
          note: what else there is to know of the part, as JSON values.

        Raises:
          DataError: it cannot be written, as on a full disk.
        """
        rows, note_file = (part_file(self._folder, first, stop, x) for x in ("rows", "note"))
        staged = rows.with_suffix(".rows.tmp")
        with self.blaming():
            try:
                with self._open_writer(staged) as writer:
                    for record in records:
                        writer.write(record)
                digest = digest_file(staged)
                os.replace(staged, rows)
                write_whole(note_file, json.dumps({"sha256": digest, **note}))
            except BaseException:
                # What is half written takes space that the next attempt may need.
                with suppress(OSError):
                    staged.unlink(missing_ok=True)
                    note_file.with_suffix(".note.tmp").unlink(missing_ok=True)
                raise
        self.done[first] = stop

    @contextmanager
    def _open_writer(self, staged: Path) -> Iterator[Any]:
        """A writer of the table's format; when the block ends, the file is on disk."""
        with staged.open("wb") as stream:
            writer = WRITERS[self._out.suffix.lower()](stream, self._metadata, self._schema)
            try:
                yield writer
                writer.finish()
            finally:
                writer.abandon()
            to_disk(stream)

    def read_notes(self) -> Iterator[dict[str, Any]]:
        """The note of each part, in the order of the input."""
        for first, stop in sorted(self.done.items()):
            with self.blaming():
                text = part_file(self._folder, first, stop, "note").read_text(encoding="utf-8")
            yield json.loads(text)

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Puts the parts together under the table's name and deletes them.

        Args:
          metadata: of the table, beside that which was known from the start.

        Raises:
          DataError: the table cannot be written, or a file of its name has appeared meanwhile.
        """
        staged, sidecar = self._folder / "table.tmp", sidecar_of(self._out)
        self._metadata = {**self._metadata, **(metadata or {})}
        with self.blaming():
            try:
                with self._open_writer(staged) as writer:
                    for first, stop in sorted(self.done.items()):
                        writer.append(part_file(self._folder, first, stop, "rows"))
            except BaseException:
                staged.unlink(missing_ok=True)
                raise
            if self._out.exists() and not self._overwrite:
                raise DataError(
                    "appeared meanwhile",
                    file=self._out,
                    remedy="move it away and run the same command again",
                )
            if not writer.keeps_metadata:
                about = describe_metadata(self._metadata)
                write_whole(sidecar, about, staged=self._folder / "sidecar.tmp")
            # From here on a restart must know whether the table is in place: it is if this file
            # is there and the staged one is not.
            write_whole(self._folder / "finished", json.dumps(self._run))
            os.replace(staged, self._out)
            sync_folder(self._out.parent)
            self.discard()

    def discard(self) -> None:
        """Deletes the parts and their folder."""
        remove_folder(self._folder)
        self.done.clear()

    def begin(self) -> None:
        """Finds what an earlier run left; refuses it, or goes on with it, or starts afresh."""
        manifest, finished = self._folder / "manifest", self._folder / "finished"
        if is_finished(self._out) and read_json(finished) == self._run:
            self.discard()
            self.complete = True
            return
        if self._out.exists() and not self._overwrite:
            raise UsageError(
                "exists already",
                file=self._out,
                remedy="give another name, or replace it with --overwrite",
            )
        finished.unlink(missing_ok=True)
        sync_folder(self._folder)
        if manifest.exists():
            earlier = read_json(manifest)
            if not self._overwrite:
                check_same(earlier, self._run, self._folder)
            if earlier == self._run:
                self.done = find_parts(self._folder)
                return
        else:
            check_ours(self._folder)
        clear_folder(self._folder)
        write_whole(manifest, json.dumps(self._run, indent=1))

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Turns a system's error within the block into one that names the table."""
        try:
            yield
        except OSError as error:
            kept = f"{self.rows:,} rows are kept" if self.done else "nothing is lost"
            raise DataError(
                f"the table cannot be written: {error.strerror or error}",
                file=self._out,
                remedy=f"{remedy_for_writing(error)} and run the same command again: {kept}",
            ) from error


@contextmanager
def open_parts(
    out: Path,
    metadata: Mapping[str, str],
    inputs: Mapping[str, str],
    *,
    overwrite: bool = False,
    schema: pa.Schema = SCHEMA,
) -> Iterator[Parts]:
    """Opens the parts of a run: those that an earlier run of the same kind left, or none.

    After an exception, finished parts stay on disk; where there are none, nothing stays.

    Args:
      out: the table that the parts will be.
      metadata: of the run, for the table.
      inputs: what else the scores depend on: data files, how they are read. A run goes on only if
        this and the metadata are what they were.
      overwrite: replace an existing table, and drop the parts of a run of another kind.
      schema: columns of the table; by default those of the score table.

    Raises:
      UsageError: the parts are of a run of another kind, or another process is writing them.
      DataError: their manifest is damaged, or they cannot be written.
    """
    parts = Parts(out, metadata, {**metadata, **inputs}, overwrite, schema)
    folder = folder_of(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", file=folder, remedy="move it away")
    with ExitStack() as stack:
        with parts.blaming():
            stack.enter_context(hold_lock(folder / "lock", of=out))
        try:
            with parts.blaming():
                parts.begin()
        except BaseException:
            if not (folder / "manifest").exists():
                parts.discard()
            raise
        try:
            yield parts
        except BaseException:
            if not parts.done:
                parts.discard()
            raise
