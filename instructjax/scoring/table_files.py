"""Score tables as files: written row by row, whole or not at all, and read back."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.errors import DataError, UsageError
from instructjax.scoring.table import SCHEMA, read_metadata, schema_with, to_table
from instructjax.scoring.table_writers import WRITERS

SUFFIXES = tuple(WRITERS)

Write = Callable[[Mapping[str, Any]], None]


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Checks, before any work is done, that scores can be written there; makes its folder.

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
            f"the scores cannot be written: {error.strerror or error}",
            file=path,
            remedy="nothing of them is kept; make space or choose another place, and run again",
        ) from error


def describe_metadata(metadata: Mapping[str, str]) -> str:
    """The text of the metadata file that stands beside a .jsonl or .csv table."""
    return json.dumps(dict(metadata), indent=2, ensure_ascii=False) + "\n"


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


def read_scores(path: str | os.PathLike[str]) -> pa.Table:
    """Reads a score table that `instructjax score` or `Scores.save` wrote.

    In .csv a name that is empty and one that is missing look alike and are read as missing; in
    .jsonl a number that was not finite is read as NaN.

    Raises:
      UsageError: no such file, or another suffix.
      DataError: it is no score table, or it is damaged.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError("is no score table", file=path, remedy=f"give {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UsageError("there is no such file", file=path, remedy="check the path")
    try:
        if suffix == ".parquet":
            # Not read_table: that takes "key=value" folders of the path for columns.
            table = pq.ParquetFile(path).read()
            return table.select(SCHEMA.names).cast(schema_with(read_metadata(table)))
        sidecar = sidecar_of(path)
        metadata = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
        with path.open(encoding="utf-8", newline="") as stream:
            records = map(json.loads, stream) if suffix == ".jsonl" else _read_csv(stream)
            return to_table(map(_restore, records), metadata)
    except (OSError, KeyError, TypeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read as a score table ({type(error).__name__}: {error})",
            file=path,
            remedy="give a file that `instructjax score` wrote",
        ) from error


def _read_csv(stream: Iterable[str]) -> Iterator[dict[str, Any]]:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in csv.DictReader(stream, strict=True):
            yield {name: _from_cell(name, row[name]) for name in SCHEMA.names}
    finally:
        csv.field_size_limit(limit)


def _from_cell(name: str, text: str) -> Any:
    kind = SCHEMA.field(name).type
    if pa.types.is_list(kind):
        number = int if pa.types.is_integer(kind.value_type) else float
        return [number(part) for part in text.split()]
    if pa.types.is_string(kind):
        return text or (None if SCHEMA.field(name).nullable else "")
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}[text]
    if not text:
        return None
    return int(text) if pa.types.is_integer(kind) else float(text)


def _restore(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it was before it became text: null means NaN where a number must be."""
    values = {name: record[name] for name in SCHEMA.names}
    for name in ("log_prob", "log_prob_per_token"):
        if values[name] is None:
            values[name] = float("nan")
    values["token_log_probs"] = [
        float("nan") if x is None else x for x in values["token_log_probs"]
    ]
    return values
