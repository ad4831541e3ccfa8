"""A long run as parts on disk, so that it can be stopped at any moment and go on.

Beside the table to be, in `<out>.parts`, lie a manifest (which run this is), a lock, and two
files a finished chunk: its rows, as a table of the same format, and a note with the rows' digest,
the rejected rows and counts. The note comes last, so a chunk is there exactly if its note is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from instructjax.errors import DataError, UsageError
from instructjax.scoring.lock import hold_lock
from instructjax.scoring.manifest import check_same, digest_file, read_json
from instructjax.scoring.table_files import (
    describe_metadata,
    sidecar_of,
    sync_folder,
    to_disk,
    write_whole,
)
from instructjax.scoring.table_writers import WRITERS

_FORMAT = 1
_NOTE = re.compile(r"(\d{12})-(\d{12})\.note")
_OURS = re.compile(r"lock|manifest|finished|.*\.tmp|\d{12}-\d{12}\.(note|rows)")


def folder_of(out: Path) -> Path:
    """Where the parts of a table are kept until it is complete.

    >>> folder_of(Path("scores.csv")).name
    'scores.csv.parts'
    """
    return out.with_name(out.name + ".parts")


def count_kept(out: Path) -> int:
    """Rows of the input that a stopped run has done, told from the names of its parts."""
    names = [_NOTE.fullmatch(file.name) for file in _list_files(folder_of(out))]
    return sum(int(name[2]) - int(name[1]) for name in names if name)


def is_finished(out: Path) -> bool:
    """Whether a run was stopped after its table was in place and before it had tidied up."""
    folder = folder_of(out)
    return (folder / "finished").exists() and not (folder / "table.tmp").exists() and out.exists()


class Parts:
    """The finished parts of one run; made by `open_parts`.

    Attributes:
      done: the index of each part's first row of the input to that after its last.
      complete: the table is there already; nothing is left to do.
    """

    def __init__(
        self, out: Path, metadata: Mapping[str, str], run: Mapping[str, str], overwrite: bool
    ) -> None:
        self._out, self._metadata, self._run, self._overwrite = out, metadata, run, overwrite
        self._folder = folder_of(out)
        self._suffix = out.suffix.lower()
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
          records: of the score table.
          note: what else there is to know of the part, as JSON values.

        Raises:
          DataError: it cannot be written, as on a full disk.
        """
        name = f"{first:012d}-{stop:012d}"
        staged = self._folder / f"{name}.rows.tmp"
        with self._blaming():
            try:
                with staged.open("wb") as stream:
                    writer = WRITERS[self._suffix](stream, self._metadata)
                    try:
                        for record in records:
                            writer.write(record)
                        writer.finish()
                    finally:
                        writer.abandon()
                    to_disk(stream)
                digest = digest_file(staged)
                os.replace(staged, self._folder / f"{name}.rows")
                text = json.dumps({"sha256": digest, **note})
                write_whole(self._folder / f"{name}.note", text)
            except BaseException:
                # What is half written takes space that the next attempt may need.
                with suppress(OSError):
                    staged.unlink(missing_ok=True)
                    (self._folder / f"{name}.note.tmp").unlink(missing_ok=True)
                raise
        self.done[first] = stop

    def read_notes(self) -> Iterator[dict[str, Any]]:
        """The note of each part, in the order of the input."""
        for first, stop in sorted(self.done.items()):
            with self._blaming():
                text = self._name(first, stop, "note").read_text(encoding="utf-8")
            yield json.loads(text)

    def finish(self) -> None:
        """Puts the parts together under the table's name and deletes them.

        Raises:
          DataError: the table cannot be written, or a file of its name has appeared meanwhile.
        """
        staged, sidecar = self._folder / "table.tmp", sidecar_of(self._out)
        with self._blaming():
            try:
                with staged.open("wb") as stream:
                    writer = WRITERS[self._suffix](stream, self._metadata)
                    try:
                        for first, stop in sorted(self.done.items()):
                            writer.append(self._name(first, stop, "rows"))
                        writer.finish()
                    finally:
                        writer.abandon()
                    to_disk(stream)
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
        self._clear()
        (self._folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):  # something of the user's is in it
            self._folder.rmdir()

    def begin(self) -> None:
        """Finds what an earlier run left; refuses it, or goes on with it, or starts afresh."""
        with self._blaming():
            self._begin()

    def _begin(self) -> None:
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
            found = read_json(manifest)
            earlier = found.get("run") if isinstance(found, dict) else None
            if not self._overwrite:
                check_same(earlier, self._run, self._folder)
            if earlier == self._run:
                self._find_done()
                return
        else:
            self._check_ours()
        self._clear()
        write_whole(manifest, json.dumps({"format": _FORMAT, "run": self._run}, indent=1))

    def _clear(self) -> None:
        """Deletes all but the lock, the files that say what the others are last."""
        ours = [file for file in _list_files(self._folder) if _OURS.fullmatch(file.name)]
        for file in sorted(ours, key=lambda file: (file.name == "finished", not file.suffix)):
            if file.name != "lock":
                file.unlink(missing_ok=True)
        self.done.clear()

    def _check_ours(self) -> None:
        foreign = [f for f in _list_files(self._folder) if not _OURS.fullmatch(f.name)]
        if foreign:
            raise UsageError(
                f"is the folder for unfinished scores, and {foreign[0].name} is in it",
                file=self._folder,
                remedy="move that away, or give another --out",
            )

    def _find_done(self) -> None:
        """Keeps the parts that are whole, deletes all else."""
        for file in _list_files(self._folder):
            if file.suffix == ".tmp":
                file.unlink()
            elif name := _NOTE.fullmatch(file.name):
                first, stop = int(name[1]), int(name[2])
                note, rows = read_json(file), self._name(first, stop, "rows")
                with suppress(FileNotFoundError):
                    if isinstance(note, dict) and note.get("sha256") == digest_file(rows):
                        self.done[first] = stop
                        continue
                file.unlink()
        for file in _list_files(self._folder):
            if file.suffix == ".rows" and not file.with_suffix(".note").exists():
                file.unlink()

    def _name(self, first: int, stop: int, suffix: str) -> Path:
        return self._folder / f"{first:012d}-{stop:012d}.{suffix}"

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = f"{self.rows:,} rows are kept" if self.done else "nothing is lost"
            raise DataError(
                f"the scores cannot be written: {error.strerror or error}",
                file=self._out,
                remedy=f"make space and run the same command again: {kept}",
            ) from error


@contextmanager
def open_parts(
    out: Path, metadata: Mapping[str, str], inputs: Mapping[str, str], *, overwrite: bool = False
) -> Iterator[Parts]:
    """Opens the parts of a run: those that an earlier run of the same kind left, or none.

    After an exception, finished parts stay on disk; where there are none, nothing stays.

    Args:
      out: the table that the parts will be.
      metadata: of the run, for the table.
      inputs: what else the scores depend on: data files, how they are read. A run goes on only if
        this and the metadata are what they were.
      overwrite: replace an existing table, and drop the parts of a run of another kind.

    Raises:
      UsageError: the parts are of a run of another kind, or another process is writing them.
      DataError: their manifest is damaged, or they cannot be written.
    """
    parts = Parts(out, metadata, {**metadata, **inputs}, overwrite)
    folder = folder_of(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", file=folder, remedy="move it away")
    with hold_lock(folder / "lock", of=out):
        try:
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


def _list_files(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
