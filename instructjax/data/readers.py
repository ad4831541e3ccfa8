"""Reads data files row by row: every row becomes an `Example` or a `Reject`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from instructjax.data.contract import CONTRACT, build_example
from instructjax.data.example import Example
from instructjax.data.files import find_files, find_stem, open_records
from instructjax.data.formats import FORMATS, Format, detect_format
from instructjax.data.records import Record
from instructjax.data.rejects import BadRow, Reject, shorten_raw
from instructjax.errors import DataError, UsageError

_DETECT_ROWS = 100
_MISSING = object()


def read_examples(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    fields: Mapping[str, str] | None = None,
    needs_output: bool = True,
    keep_extra: bool = False,
) -> Iterator[Example | Reject]:
    """Streams the rows of a data file, or of every data file within a folder.

    The files are checked before this returns; rows are read as they are asked for, one at a
    time, so that the size of a file does not matter. A row that cannot be used is a `Reject`
    in its place, and reading goes on. Blank lines are not rows.

    An example's id is the row's `id`, else "<name of the file without extension>:<n>" with n
    the row's number from 1, rejected rows counted. Ids are names: they need not be unique.

    Args:
      path: a .jsonl, .ndjson, .json, .csv, .tsv (each also .gz), .parquet or .pq file, or a folder.
      format: contract, alpaca, dolly, superni, messages, ifeval, flan or bigbench; by
        default the one that the first rows have.
      fields: columns by the contract's names, such as {"instruction": "question"}; "a.b" is
        column b within column a, "a.0" the first item of a list. Rows are then read as format
        contract, unless `answer` alone is mapped.
      needs_output: whether rows must have a response; without, they are prompts to answer.
      keep_extra: keep columns that are not the contract's in `Example.extra`.

    Returns:
      An iterator of examples and rejects, in the order of the rows.

    Raises:
      UsageError: an unknown format, field, path or extension; a mapped column that no row has.
      DataError: a file cannot be read as a whole, has no rows, or its columns fit no format.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "sums.csv"
    >>> _ = file.write_text('question,answer\\n1 + 1,2\\n2 + 2,\\n')
    >>> for row in read_examples(file, fields={"instruction": "question", "output": "answer"}):
    ...     print(row.id if isinstance(row, Example) else f"{row.row}: {row.reason}")
    sums:1
    line 3: no response: `answer` is missing or null; give it a text
    """
    fields = dict(fields or {})
    _check_options(format, fields)
    sources = [
        _open_source(file, format, fields, needs_output, keep_extra)
        for file in find_files(Path(path))
    ]
    return (row for source in sources for row in source.read_rows())


@dataclass(frozen=True, kw_only=True)
class _Source:
    file: Path
    start: Callable[[], Iterator[Record]]
    format: Format
    fields: Mapping[str, str]
    needs_output: bool
    keep_extra: bool

    def read_rows(self) -> Iterator[Example | Reject]:
        stem = find_stem(self.file)
        columns = {**self.format.columns, **self.fields}
        for record in self.start():
            try:
                if record.value is None:
                    raise BadRow(record.reason)
                row = self.format.convert(_map_fields(record.value, self.fields), stem)
                yield build_example(
                    row,
                    default_id=f"{stem}:{record.number}",
                    columns=columns,
                    place=(str(self.file), record.row),
                    extra=_find_extra(record.value) if self.keep_extra else None,
                    needs_output=self.needs_output,
                )
            except BadRow as bad:
                yield Reject(
                    file=str(self.file),
                    row=record.row,
                    reason=str(bad),
                    raw=shorten_raw(record.raw),
                )


def _check_options(format: str | None, fields: Mapping[str, str]) -> None:
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", remedy=f"use one of {', '.join(FORMATS)}")
    unknown = [name for name in fields if name not in CONTRACT]
    if unknown:
        raise UsageError(
            f"unknown field {', '.join(map(repr, unknown))}",
            remedy=f"map one of {', '.join(CONTRACT)} to a column",
        )
    if fields.keys() - {"answer"} and format not in (None, "contract", "alpaca"):
        raise UsageError(
            f"fields and the format {format!r} exclude each other",
            remedy="give one of them: mapped rows are read as format contract",
        )


def _open_source(
    file: Path,
    format: str | None,
    fields: Mapping[str, str],
    needs_output: bool,
    keep_extra: bool,
) -> _Source:
    start = open_records(file)
    first = _read_first_columns(file, start, fields)
    rows = [mapped for _, mapped in first]
    for name, column in fields.items():
        if rows and not any(name in row for row in rows):
            columns = tuple(dict.fromkeys(chain(*(written for written, _ in first))))
            raise UsageError(
                f"no column {column!r} for the field {name!r}; there are {_list_columns(columns)}",
                file=file,
                remedy="map the field to one of these columns",
            )
    if fields.keys() - {"answer"}:
        format = "contract"
    if not needs_output and rows and not any(_fits(row, format) for row in rows):
        rows = [(*row, "output") for row in rows]
    if rows and not any(_fits(row, format) for row in rows):
        raise _make_format_error(file, format, rows[0])
    if rows and all("instructions" in row and "instruction" not in row for row in rows):
        raise DataError(
            "there is a list of `instructions`, and which of them a row goes with is not said",
            file=file,
            remedy="pick one: fields={'instruction': 'instructions.0'}"
            " (`--field instruction=instructions.0`)",
        )
    found = format or next((name for row in rows if (name := detect_format(row))), "contract")
    return _Source(
        file=file,
        start=start,
        format=FORMATS[found],
        fields=fields,
        needs_output=needs_output,
        keep_extra=keep_extra,
    )


def _find_extra(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CONTRACT}


def _read_first_columns(
    file: Path, start: Callable[[], Iterator[Record]], fields: Mapping[str, str]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Returns the columns of the first rows, as written and as mapped, to tell the format by.

    Several, because the very first may be broken or lack a column.
    """
    # A generator closed here, and not whenever it is collected, closes its file here.
    with closing(start()) as records:  # type: ignore[type-var]
        first = next(records, None)
        if first is None:
            raise DataError("the file has no rows", file=file, remedy="give a file with rows")
        if first.value is None and first.row.endswith("everything after"):
            raise DataError(
                f"nothing could be read ({first.reason})", file=file, remedy="repair the file"
            )
        values = (record.value for record in chain([first], records) if record.value is not None)
        return [
            (tuple(value), tuple(_map_fields(value, fields)))
            for value in islice(values, _DETECT_ROWS)
        ]


def _fits(row: tuple[str, ...], format: str | None) -> bool:
    return detect_format(row) is not None if format is None else FORMATS[format].matches(row)


def _make_format_error(file: Path, format: str | None, row: tuple[str, ...]) -> DataError:
    needs = "; ".join(f"{name}: {form.needs}" for name, form in FORMATS.items())
    if format is None:
        message = f"the columns ({_list_columns(row)}) fit no format ({needs})"
    else:
        message = f"format {format} has {FORMATS[format].needs}; there are {_list_columns(row)}"
    remedy = (
        "name the columns: fields={'instruction': 'COLUMN', 'output': 'COLUMN'}"
        " (`--field instruction=COLUMN --field output=COLUMN`), or choose another format"
    )
    return DataError(message, file=file, remedy=remedy)


def _list_columns(row: tuple[str, ...]) -> str:
    return ", ".join(row[:40]) or "no columns"


def _map_fields(row: Mapping[str, Any], fields: Mapping[str, str]) -> Mapping[str, Any]:
    if not fields:
        return row
    found = {name: _find_column(row, column) for name, column in fields.items()}
    kept = {name: value for name, value in row.items() if name not in fields}
    return kept | {name: value for name, value in found.items() if value is not _MISSING}


def _find_column(row: Any, column: str) -> Any:
    if isinstance(row, Mapping) and column in row:
        return row[column]
    name, dot, rest = column.partition(".")
    if isinstance(row, list) and name.isdecimal() and int(name) < len(row):
        return _find_column(row[int(name)], rest) if dot else row[int(name)]
    if not dot or not isinstance(row, Mapping) or name not in row:
        return _MISSING
    return _find_column(row[name], rest)
