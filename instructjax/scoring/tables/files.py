"""A table as a file: written row by row, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.scoring.tables.disk import to_disk, write_whole
from instructjax.scoring.tables.table import SCHEMA
from instructjax.scoring.tables.writers import SUFFIXES, WRITERS

Write = Callable[[Mapping[str, Any]], None]


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Checks, before any work is done, that a table can be written there; makes its folder.

    Raises:
      UsageError: a suffix that is not one of .parquet, .jsonl, .csv; an existing file without
        `overwrite`; a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"the suffix {path.suffix!r} is not one that is written",
            file=path,
            remedy=f"end the name in {', '.join(SUFFIXES)}",
        )
    if path.is_dir():
        raise UsageError("is a folder", file=path, remedy="give a file name")
    if path.exists() and not overwrite:
        raise UsageError(
            "exists already", file=path, remedy="give another name, or replace it with --overwrite"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"its folder cannot be made ({error.strerror})", file=path, remedy="give another one"
        ) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError("its folder cannot be written to", file=path, remedy="give another folder")
    return path


def sidecar_of(path: Path) -> Path:
    """Where the metadata of a .jsonl or .csv table is kept.

    >>> sidecar_of(Path("scores.csv")).name
    'scores.csv.meta.json'
    """
    return path.with_name(path.name + ".meta.json")


@contextmanager
def open_table(
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    schema: pa.Schema = SCHEMA,
) -> Iterator[Write]:
    """Gives a function that writes a record of a table.

    The file appears under its name when the block ends without an exception, complete and on
    disk. Until then it has a hidden name beside it, and after an exception nothing is left.

    Args:
      path: .parquet, .jsonl or .csv.
      metadata: of the run: in a Parquet file's schema, else in `<path>.meta.json`.
      overwrite: replace an existing file.
      schema: columns of the records; by default those of the score table.

    Raises:
      UsageError: see `check_target`.
      DataError: the file cannot be written, as on a full disk.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "scores.jsonl"
    >>> with open_table(out, {"model": "tiny"}):
    ...     out.exists()
    False
    >>> out.exists()
    True
    """
    path = check_target(path, overwrite=overwrite)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sidecar, sidecar_part = sidecar_of(path), sidecar_of(part)
    stream = writer = None
    try:
        with _blaming(path):
            stream = part.open("wb")
            writer = WRITERS[path.suffix.lower()](stream, metadata, schema)

        def write(record: Mapping[str, Any]) -> None:
            with _blaming(path):
                writer.write(record)

        yield write
        with _blaming(path):
            writer.finish()
            to_disk(stream)
            stream.close()
            if path.exists() and not overwrite:
                raise DataError("appeared meanwhile", file=path, remedy="give another name")
            if not writer.keeps_metadata:
                write_whole(sidecar, describe_metadata(metadata), staged=sidecar_part)
            os.replace(part, path)
    finally:
        with suppress(Exception):
            if writer is not None:
                writer.abandon()
            if stream is not None:
                stream.close()
        part.unlink(missing_ok=True)
        sidecar_part.unlink(missing_ok=True)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Errors of the block are the output's; those of the caller's own files pass elsewhere."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the table cannot be written: {error.strerror or error}",
            file=path,
            remedy=f"nothing of them is kept; {remedy_for_writing(error)} or choose another place, "
            "and run again",
        ) from error


def describe_metadata(metadata: Mapping[str, str]) -> str:
    """The text of the metadata file that stands beside a .jsonl or .csv table."""
    text = json.dumps(dict(metadata), indent=2, ensure_ascii=False) + "\n"
    # A path whose name is not UTF-8 has surrogates in it; JSON can spell them.
    return text.encode("utf-8", "backslashreplace").decode()
