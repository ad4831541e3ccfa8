"""What a model wrote, read from a file of samples."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.errors import DataError, UsageError
from instructjax.evaluation.written import Written, list_flags

Predictions = Mapping[str, tuple[Written, ...]]
_COLUMNS = ("id", "output", "text", "prediction", "finish_reason", "status", "model", "metric")
# What the status of an evaluation says of a metric, not of the text that it read.
_OF_METRICS = ("failed", "no_reference", "no_constraints", "samples", "unchecked")


def read_predictions(path: Path, model: str | None = None) -> Predictions:
    """The texts of a file by the id of their example, several samples in their order.

    Args:
      path: .jsonl or .parquet, with `id` and `output` (as `instructjax sample` writes it) or
        `text` in every row, and their flags in `status` and `finish_reason` if they are there; or
        a table of `instructjax evaluate` that has kept its predictions.
      model: whose texts, in a table that has those of several.

    Raises:
      UsageError: no such file, another suffix, or texts of several models and not of this one.
      DataError: a row has no `id` or no text, or there are no rows.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
    >>> _ = file.write_text('{"id": "a", "output": "Yes"}\\n{"id": "a", "output": "No"}\\n')
    >>> [written.text for written in read_predictions(file)["a"]]
    ['Yes', 'No']
    """
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise UsageError("is no samples file", file=path, remedy="give .jsonl or .parquet")
    if not path.is_file():
        raise UsageError("there is no such file", file=path, remedy="check the path")
    texts: dict[str, list[Written]] = {}
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_lines
    rows = list(read(path))
    if rows and all({"id", "metric", "model"} <= record.keys() for _, record in rows):
        return _find_evaluated(rows, path, model)
    for row, record in rows:
        name, text = record.get("id"), record.get("output", record.get("text"))
        if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(text, str):
            wrong = "output" if isinstance(name, str | int) else "id"
            raise DataError(
                f"`{wrong}` is missing or no text",
                file=path,
                row=row,
                remedy='write {"id": ..., "output": ...} in every row',
            )
        flags = list_flags(record.get("status"), record.get("finish_reason"))
        texts.setdefault(str(name), []).append(Written(text=text, flags=flags))
    if not texts:
        raise DataError("the file has no rows", file=path, remedy="give a file with samples")
    return {name: tuple(found) for name, found in texts.items()}


def _find_evaluated(
    rows: Iterable[tuple[str, Mapping[str, Any]]], path: Path, model: str | None
) -> Predictions:
    """The texts in an evaluation table, which repeats them with every metric of text."""
    found: dict[str, dict[str, Written]] = {}
    for _, record in rows:
        text = record.get("prediction")
        if not isinstance(text, str):
            continue
        flags = tuple(
            flag
            for flag in list_flags(record.get("status"), None)
            if flag.partition("=")[0] not in _OF_METRICS
        )
        mine = found.setdefault(str(record["model"]), {})
        mine.setdefault(str(record["id"]), Written(text=text, flags=flags))
    if not found:
        raise DataError("no row has a `prediction`", file=path, remedy="give a file with samples")
    if len(found) > 1 and model not in found:
        raise UsageError(
            f"has predictions of {', '.join(found)}, and none of {model}",
            file=path,
            remedy="give the models of the table",
        )
    chosen = found[model] if model in found else next(iter(found.values()))
    return {name: (written,) for name, written in chosen.items()}


def find_strangers(predictions: Iterable[str], seen: Collection[str]) -> tuple[int, str]:
    """How many ids of predictions no row of the data has, and the first of them.

    >>> find_strangers(["a", "b", "c"], {"a"})
    (2, 'b')
    """
    left = [name for name in predictions if name not in seen]
    return len(left), next(iter(left), "")


def refuse_twins(
    rows: Iterable[Example | Reject], seen: set[str] | None = None
) -> Iterator[Example | Reject]:
    """The rows, while their ids differ: predictions are found by them.

    Args:
      seen: takes their ids, if given.

    Raises:
      DataError: an id comes twice.
    """
    seen = set() if seen is None else seen
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
            record = record if isinstance(record, dict) else {}
            yield f"line {number}", {name: record[name] for name in _COLUMNS if name in record}


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        table = file.read(columns=[name for name in _COLUMNS if name in names])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="repair it") from error
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"row {number}", record
