"""Finds data files and opens each by its extension."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from instructjax.data.csv_records import stream_csv
from instructjax.data.json_records import open_json, stream_json_lines
from instructjax.data.parquet_records import open_parquet
from instructjax.data.records import READ_ERRORS, Record, open_bytes
from instructjax.errors import DataError, UsageError

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq")


def find_files(path: Path) -> list[Path]:
    """Returns the data files that a path names: itself, or all within a folder, sorted.

    Hidden files and rejects files in a folder are left out.

    Raises:
      UsageError: there is no such path, or no data file in the folder.
    """
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and find_extension(file)
        and not file.name.endswith(".rejects.jsonl")
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise UsageError(
            "the folder has no data files", file=path, remedy=f"give {', '.join(EXTENSIONS)} files"
        )
    return files


def find_extension(path: Path) -> str | None:
    """Returns the extension that says how to read a file, without .gz, or None.

    >>> find_extension(Path("rows.JSONL.gz")), find_extension(Path("notes.txt"))
    ('.jsonl', None)
    """
    name = path.name.lower().removesuffix(".gz")
    extension = Path(name).suffix
    if extension in (".parquet", ".pq") and path.name.lower().endswith(".gz"):
        return None
    return extension if extension in EXTENSIONS else None


def find_stem(path: Path) -> str:
    """Returns the name of a data file without its extension; bytes that are not UTF-8 as \\xff.

    >>> find_stem(Path("data/task1.v2.json.gz"))
    'task1.v2'
    """
    stem = Path(path.name[:-3] if path.name.lower().endswith(".gz") else path.name).stem
    return os.fsencode(stem).decode("utf-8", "backslashreplace")


def open_records(path: Path) -> Callable[[], Iterator[Record]]:
    """Checks a data file as a whole and returns a function that starts streaming its records.

    Raises:
      UsageError: the file is missing or its extension is not one that is read.
      DataError: the file as a whole cannot be read.
    """
    extension = find_extension(path)
    if extension is None and path.exists():
        raise UsageError(
            f"the extension {path.suffix!r} is not one that is read",
            file=path,
            remedy=f"use one of {', '.join(EXTENSIONS)} (text formats also with .gz)",
        )
    try:
        with open_bytes(path) as stream:
            start = stream.read(4)
    except FileNotFoundError:
        raise UsageError("there is no such file", file=path, remedy="check the path") from None
    except PermissionError:
        raise DataError(
            "permission denied", file=path, remedy="make the file readable for you"
        ) from None
    except READ_ERRORS as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="get it again") from None
    if not start:
        raise DataError("the file is empty", file=path, remedy="give a file with rows")
    if extension in (".parquet", ".pq"):
        return open_parquet(path)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the text is UTF-16", file=path, remedy="save it as UTF-8")
    if extension in (".csv", ".tsv"):
        return partial(stream_csv, path, "\t" if extension == ".tsv" else ",")
    return open_json(path) if extension == ".json" else partial(stream_json_lines, path)
