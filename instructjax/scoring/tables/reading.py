"""Score tables read back from the files that they were written to."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.errors import DataError, UsageError
from instructjax.scoring.tables.files import sidecar_of
from instructjax.scoring.tables.table import DETAILS, SCHEMA, read_metadata, schema_with, to_table
from instructjax.scoring.tables.writers import SUFFIXES


def read_scores(path: str | os.PathLike[str]) -> pa.Table:
    """Reads a score table that `instructjax score` or `Scores.save` wrote.

    In .csv a name that is empty and one that is missing look alike and are read as missing; in
    .jsonl a number that was not finite is read as NaN.

    Raises:
      UsageError: no such file, or another suffix.
      DataError: it is no score table, or it is damaged.
    """
    return read_table(path, SCHEMA, more=DETAILS, verb="score", restore=_restore)


def read_table(
    path: str | os.PathLike[str],
    schema: pa.Schema,
    *,
    more: Sequence[pa.Field] = (),
    optional: Collection[str] = (),
    verb: str,
    restore: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> pa.Table:
    """Reads a table that a verb wrote, with its columns and metadata.

    Args:
      path: a .parquet, .jsonl or .csv file.
      schema: its columns.
      more: columns that it may have or not.
      optional: columns of the schema that are null where it does not have them.
      verb: who writes such tables, such as "score", to name in messages.
      restore: makes a record of what a .jsonl or .csv file has of it.

    Raises:
      UsageError: no such file, or another suffix.
      DataError: it is no such table, or it is damaged.
    """
    path = Path(path)
    suffix, noun = path.suffix.lower(), "evaluation" if verb == "evaluate" else verb
    if suffix not in SUFFIXES:
        raise UsageError(f"is no {noun} table", file=path, remedy=f"give {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UsageError("there is no such file", file=path, remedy="check the path")
    try:
        if suffix == ".parquet":
            # Not pq.read_table: that takes "key=value" folders of the path for columns.
            table = pq.ParquetFile(path).read()
            schema = _extend(schema, more, table.column_names)
            for name in set(optional) - set(table.column_names):
                field = schema.field(name)
                table = table.append_column(field, pa.nulls(len(table), field.type))
            return table.select(schema.names).cast(schema_with(read_metadata(table), schema))
        sidecar = sidecar_of(path)
        metadata = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
        with path.open(encoding="utf-8", newline="") as stream:
            every = _extend(schema, more, [field.name for field in more])
            records = map(json.loads, stream) if suffix == ".jsonl" else _read_csv(stream, every)
            first = list(islice(records, 1))
            schema = _extend(schema, more, first[0] if first else ())
            records = chain(first, records)
            chosen = (_choose(record, schema, every, optional) for record in records)
            return to_table(map(restore, chosen) if restore else chosen, metadata, schema)
    except (OSError, KeyError, TypeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read as {'an' if noun[0] in 'aeiou' else 'a'} {noun} table "
            f"({type(error).__name__}: {error})",
            file=path,
            remedy=f"give a file that `instructjax {verb}` wrote",
        ) from error


def _extend(schema: pa.Schema, more: Sequence[pa.Field], found: Iterable[str]) -> pa.Schema:
    names = set(found)
    there = [field for field in more if field.name in names]
    if there and len(there) < len(more):
        missing = next(field.name for field in more if field.name not in names)
        raise ValueError(f"it has a column {there[0].name} and none {missing}")
    return pa.schema([*schema, *there])


def _choose(
    record: Mapping[str, Any], schema: pa.Schema, every: pa.Schema, optional: Collection[str]
) -> dict[str, Any]:
    """A record's values, which must be those of the first one's columns."""
    more = [name for name in every.names if name in record and name not in schema.names]
    if more:
        raise ValueError(f"a row has a {more[0]}, and the first has none")
    return {name: record.get(name) if name in optional else record[name] for name in schema.names}


def _read_csv(stream: Iterable[str], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in csv.DictReader(stream, strict=True):
            if None in row:
                raise ValueError("a row has more cells than the header")
            yield {f.name: _from_cell(f, row[f.name]) for f in schema if f.name in row}
    finally:
        csv.field_size_limit(limit)


def _from_cell(field: pa.Field, text: str | None) -> Any:
    kind = field.type
    if text is None:
        raise ValueError(f"a row ends before its {field.name}")
    if pa.types.is_list(kind):
        number = int if pa.types.is_integer(kind.value_type) else float
        return [number(part) for part in text.split()]
    if pa.types.is_string(kind):
        return text or (None if field.nullable else "")
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}[text]
    if not text:
        return None
    return int(text) if pa.types.is_integer(kind) else float(text)


def _restore(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it was before it became text: null means NaN where a number must be."""
    values = dict(record)
    for name in ("log_prob", "log_prob_per_token"):
        if values[name] is None:
            values[name] = float("nan")
    for name in ("token_log_probs", "token_entropies", "top_log_probs"):
        if name in values:
            values[name] = [float("nan") if x is None else x for x in values[name]]
    return values
