"""Streams the records of Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from instructjax.data.records import Record, lose_rest
from instructjax.errors import DataError


def open_parquet(path: Path) -> Callable[[], Iterator[Record]]:
    """Checks a Parquet file and returns a function that streams its rows."""
    # Imported here because it takes longer than reading most data files of the other kinds.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowException, OSError) as error:
        detail = str(error).partition("\n")[0]
        raise DataError(
            f"the file is not a whole Parquet file ({detail})", file=path, remedy="write it again"
        ) from None
    return partial(_stream_parquet, path)


def _stream_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    # With a buffer size, a column is read in pieces and not a whole row group at once.
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        try:
            for batch in file.iter_batches(batch_size=64):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError:
                    rows = [None] * batch.num_rows
                for index, value in enumerate(rows):
                    number += 1
                    if value is None:
                        yield _read_parquet_row(batch.slice(index, 1), number)
                    else:
                        yield Record(row=f"row {number}", number=number, raw=value, value=value)
        except (pa.ArrowException, OSError) as error:
            yield lose_rest("row", number + 1, number + 1, error, "")


def _read_parquet_row(batch: Any, number: int) -> Record:
    """Reads one row of a batch in which some text is not UTF-8."""
    value: dict[str, Any] = {}
    reason = ""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value[name] = column.to_pylist()[0]
        except UnicodeDecodeError:
            reason = f"not UTF-8: column {name!r} holds bytes that are not text; write it again"
            value[name] = "(not UTF-8)"
    row = f"row {number}"
    if reason:
        return Record(row=row, number=number, raw=value, reason=reason)
    return Record(row=row, number=number, raw=value, value=value)
