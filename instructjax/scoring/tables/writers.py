"""One writer a file format of the score table: records in, bytes out to an open stream.

`append` adds a whole file that a writer of the same format made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructjax.scoring.tables.table import SCHEMA, schema_with, to_json_values, to_table

ROW_GROUP = 8_192
ROW_GROUP_TOKENS = 1_000_000


class ParquetWriter:
    """Row groups of at most `ROW_GROUP` rows or about `ROW_GROUP_TOKENS` tokens."""

    keeps_metadata = True

    def __init__(
        self, stream: IO[bytes], metadata: Mapping[str, str], schema: pa.Schema = SCHEMA
    ) -> None:
        self._metadata, self._schema = metadata, schema
        self._writer = pq.ParquetWriter(stream, schema_with(metadata, schema), compression="zstd")
        self._group: list[Mapping[str, Any]] = []
        self._tokens = 0

    def write(self, record: Mapping[str, Any]) -> None:
        self._group.append(record)
        self._tokens += len(record.get("token_ids", ())) + 2 * len(record.get("top_ids", ()))
        if len(self._group) >= ROW_GROUP or self._tokens >= ROW_GROUP_TOKENS:
            self._flush()

    def append(self, path: Path) -> None:
        self._flush()
        with pq.ParquetFile(path) as part:
            for group in range(part.num_row_groups):
                self._writer.write_table(part.read_row_group(group))

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Lets go of the stream; else pyarrow tries to write to it when it is collected."""
        with suppress(Exception):
            self._writer.close()
        self._writer.is_open = False

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(to_table(self._group, self._metadata, self._schema))
        self._group, self._tokens = [], 0


class JsonlWriter:
    """One JSON object a line."""

    keeps_metadata = False

    def __init__(
        self, stream: IO[bytes], metadata: Mapping[str, str], schema: pa.Schema = SCHEMA
    ) -> None:
        self._stream = stream

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(to_json_values(record), ensure_ascii=False, allow_nan=False)
        self._stream.write(line.encode() + b"\n")

    def append(self, path: Path) -> None:
        with path.open("rb") as part:
            shutil.copyfileobj(part, self._stream)

    def finish(self) -> None:
        """Every record is written already."""

    abandon = finish


class CsvWriter:
    """A header line, then a line a record; lists as numbers with spaces between."""

    keeps_metadata = False

    def __init__(
        self, stream: IO[bytes], metadata: Mapping[str, str], schema: pa.Schema = SCHEMA
    ) -> None:
        self._stream, self._names = stream, schema.names
        self._write_line(self._names)

    def write(self, record: Mapping[str, Any]) -> None:
        self._write_line(_to_cell(record[name]) for name in self._names)

    def append(self, path: Path) -> None:
        with path.open("rb") as part:
            part.readline()
            shutil.copyfileobj(part, self._stream)

    def finish(self) -> None:
        """Every record is written already."""

    abandon = finish

    def _write_line(self, cells: Iterable[str]) -> None:
        self._stream.write((",".join(map(_quote, cells)) + "\n").encode())


def _quote(cell: str) -> str:
    # csv.writer leaves a carriage return bare where lines end in a newline alone.
    if any(c in cell for c in ',"\r\n'):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _to_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(repr, value)) if isinstance(value, list) else str(value)


WRITERS = {".parquet": ParquetWriter, ".jsonl": JsonlWriter, ".csv": CsvWriter}
SUFFIXES = tuple(WRITERS)
