"""Streams the records of CSV and TSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from instructjax.data.records import READ_ERRORS, Record, lose_rest, open_bytes
from instructjax.data.rejects import RAW_LIMIT
from instructjax.errors import DataError

_FIELD_LIMIT = 1 << 26  # characters; the csv module's own is 131,072


class _LineTap:
    """Passes lines on and remembers the start of those that make up the current record."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.taken = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if len(self.taken) < RAW_LIMIT:
            self.taken += line[:RAW_LIMIT]
        return line


def stream_csv(path: Path, delimiter: str) -> Iterator[Record]:
    """Yields one record a row below the header, placed at the line on which it starts."""
    if csv.field_size_limit() < _FIELD_LIMIT:
        csv.field_size_limit(_FIELD_LIMIT)  # process-wide, as the csv module has it
    number, header = 0, None
    with io.TextIOWrapper(
        open_bytes(path),  # type: ignore[arg-type]
        encoding="utf-8-sig",
        errors="surrogateescape",  # so that a bad byte costs its row, not the file
        newline="",
    ) as text:
        tap = _LineTap(text)
        reader = csv.reader(tap, delimiter=delimiter, strict=True)
        while True:
            line, tap.taken = reader.line_num + 1, ""
            cells, reason = [], ""
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = (
                    f"broken quoting: {error}, having read lines {line} to {reader.line_num} as"
                    ' one row; close every quote, and write a quote inside quotes as ""'
                )
            except READ_ERRORS as error:
                yield lose_rest("line", line, number + 1, error, tap.taken)
                return
            if not cells and not reason:
                continue
            if header is None:
                header = _read_csv_header(path, cells, reason)
                continue
            number += 1
            reason = reason or _check_cells(cells, header)
            # An empty cell is the only way to write that a column has no value.
            value = None if reason else {k: c or None for k, c in zip(header, cells, strict=True)}
            yield Record(
                row=f"line {line}", number=number, raw=tap.taken, value=value, reason=reason
            )


def _read_csv_header(path: Path, cells: list[str], reason: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        reason = f"the header names {', '.join(repeated)} more than once"
    elif not reason and _is_not_utf8(names):
        reason = "the header is not UTF-8"
    if reason:
        raise DataError(reason, file=path, row="line 1", remedy="correct the header")
    return names


def _check_cells(cells: list[str], header: list[str]) -> str:
    if _is_not_utf8(cells):
        return "not UTF-8: the row holds bytes that are not text; save the file as UTF-8"
    if len(cells) != len(header):
        return (
            f"wrong number of columns: {len(cells)} where the header has {len(header)}; "
            "put a text that holds the separator in quotes"
        )
    return ""


def _is_not_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:  # surrogateescape left something where a bad byte was
        return True
    return False
