"""What a model wrote, read from a file of samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.errors import DataError, UsageError

Predictions = Mapping[str, tuple[str, ...]]


def read_predictions(path: Path) -> Predictions:
    """The texts of a samples file by the id of their example, several samples in their order.

    Args:
      path: .jsonl or .parquet, with `id` and `output` (as `instructjax sample` writes it) or
        `text` in every row.

    Raises:
      UsageError: no such file, or another suffix.
      DataError: a row has no `id` or no text, or there are no rows.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
    >>> _ = file.write_text('{"id": "a", "output": "Yes"}\\n{"id": "a", "output": "No"}\\n')
    >>> read_predictions(file)
    {'a': ('Yes', 'No')}
    """
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise UsageError("is no samples file", file=path, remedy="give .jsonl or .parquet")
    if not path.is_file():
        raise UsageError("there is no such file", file=path, remedy="check the path")
    texts: dict[str, list[str]] = {}
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_lines
    for row, record in read(path):
        name, text = record.get("id"), record.get("output", record.get("text"))
        if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(text, str):
            wrong = "output" if isinstance(name, str | int) else "id"
            raise DataError(
                f"`{wrong}` is missing or no text",
                file=path,
                row=row,
                remedy='write {"id": ..., "output": ...} in every row',
            )
        texts.setdefault(str(name), []).append(text)
    if not texts:
        raise DataError("the file has no rows", file=path, remedy="give a file with samples")
    return {name: tuple(found) for name, found in texts.items()}


def refuse_twins(rows: Iterable[Example | Reject]) -> Iterator[Example | Reject]:
    """The rows, while their ids differ: predictions are found by them.

    Raises:
      DataError: an id comes twice.
    """
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, Example) and row.id is not None:
            if row.id in seen:
                file, place = row.place or (None, row.id)
                raise DataError(
                    f"the id {row.id!r} comes twice, and predictions are found by it",
                    file=file,
                    row=place,
                    remedy="give every row an id of its own",
                )
            seen.add(row.id)
        yield row


def _read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"is no JSON ({error})", file=path, row=f"line {number}", remedy="repair it"
                ) from None
            yield f"line {number}", record if isinstance(record, dict) else {}


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = pq.ParquetFile(path).read(columns=["id", "output"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="repair it") from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"row {number}", record
