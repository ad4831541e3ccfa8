"""Files that are on disk, whole, or not there at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, text: str, *, staged: Path | None = None) -> None:
    """Writes a file that is there whole, and on disk, or not at all.

    Args:
      path: the file.
      text: what it holds.
      staged: where it is written first, on the same disk; by default `<path>.tmp`.
    """
    staged = staged or path.with_name(path.name + ".tmp")
    with staged.open("w", encoding="utf-8") as stream:
        stream.write(text)
        to_disk(stream)
    os.replace(staged, path)
    sync_folder(path.parent)


def to_disk(stream: IO[Any]) -> None:
    """Returns when what was written to a stream is on disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Returns when the names of a folder's files are on disk, where the system can tell."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
