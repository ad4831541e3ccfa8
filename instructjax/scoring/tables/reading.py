"""Score tables read back from the files that they were written to."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.errors import DataError, UsageError
from instructjax.scoring.tables.files import sidecar_of
from instructjax.scoring.tables.table import SCHEMA, read_metadata, schema_with, to_table
from instructjax.scoring.tables.writers import SUFFIXES


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
