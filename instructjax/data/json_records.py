"""Streams the records of JSON Lines, JSON lists and JSON task files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from instructjax.data.json_split import BrokenJson, JsonSplitter
from instructjax.data.records import READ_ERRORS, Record, lose_rest, open_bytes
from instructjax.data.rejects import BadRow
from instructjax.errors import DataError

_ROW_LISTS = ("Instances", "examples")  # the lists of rows in a task file that is one object
_HEADER_LIMIT = 1 << 26  # bytes of one other member of such a file
_BOM = b"\xef\xbb\xbf"


def stream_json_lines(path: Path) -> Iterator[Record]:
    """Yields one record a line that is not blank."""
    number = line_number = 0
    with open_bytes(path) as stream:
        try:
            for line_number, line in enumerate(stream, start=1):
                data = (line.removeprefix(_BOM) if line_number == 1 else line).strip(b" \t\r\n")
                if data:
                    number += 1
                    yield _read_object(f"line {line_number}", number, data, {})
        except READ_ERRORS as error:
            yield lose_rest("line", line_number + 1, number + 1, error, b"")


def open_json(path: Path) -> Callable[[], Iterator[Record]]:
    """Looks at how a .json file is built and returns a function that streams its records."""
    with open_bytes(path) as stream:
        try:
            first = JsonSplitter(stream).peek()
        except READ_ERRORS as error:
            raise DataError(f"cannot be read ({error})", file=path, remedy="get it again") from None
    if first == "[":
        return partial(_stream_json, path, None, {})
    if first != "{":
        raise DataError(
            "the file is not JSON" if first else "the file is empty",
            file=path,
            remedy="give a list of objects, a task file, or one object a line",
        )
    row_list, header = _read_header(path)
    if row_list is not None:
        return partial(_stream_json, path, row_list, header)
    with open_bytes(path) as stream:
        line = next(line for line in stream if line.removeprefix(_BOM).strip())
    try:
        parse_object(line.removeprefix(_BOM))
    except BadRow:
        return partial(_stream_json, path, None, {})
    return partial(stream_json_lines, path)  # JSON Lines under the name .json is common


def _read_header(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Returns the name of the list of rows in a task file, or None, and its other members.

    A member can stand behind the rows, so the whole text is walked; the rows are not kept.
    """
    row_list = None
    header: dict[str, Any] = {}
    with open_bytes(path) as stream:
        splitter = JsonSplitter(stream)
        splitter.peek()
        splitter.skip_char()
        try:
            while (first := splitter.peek()) != "}":
                if not first:
                    raise BrokenJson("the text ends before the object is closed")
                key = json.loads(splitter.read_value(_HEADER_LIMIT))
                if row_list is None and key in _ROW_LISTS and splitter.peek() == "[":
                    row_list = key
                    for _ in splitter.split_array():
                        pass
                else:
                    header[key] = json.loads(splitter.read_value(_HEADER_LIMIT))
            splitter.skip_char()
            if splitter.peek():  # more objects follow: these are rows, not a task file
                return None, {}
        except (BrokenJson, ValueError, TypeError, RecursionError, *READ_ERRORS) as error:
            if row_list is None:
                raise DataError(
                    f"the file is neither a list of objects nor a task file ({error})",
                    file=path,
                    remedy="repair it; if it has one object a line, name it .jsonl",
                ) from None
    return row_list, header


def _stream_json(path: Path, row_list: str | None, header: Mapping[str, Any]) -> Iterator[Record]:
    number = 0
    with open_bytes(path) as stream:
        splitter = JsonSplitter(stream)
        try:
            for data in _find_elements(splitter, row_list):
                number += 1
                yield _read_object(f"record {number}", number, data, header)
            if splitter.peek():
                raise BrokenJson("text follows the end of the rows")
        except (BrokenJson, *READ_ERRORS) as error:
            yield lose_rest("record", number + 1, number + 1, error, splitter.copy_rest())


def _find_elements(splitter: JsonSplitter, row_list: str | None) -> Iterator[bytes]:
    if row_list is not None:
        splitter.peek()
        splitter.skip_char()
        while json.loads(splitter.read_value()) != row_list or splitter.peek() != "[":
            splitter.read_value()
    if splitter.peek() == "[":
        yield from splitter.split_array()
    else:
        while splitter.peek():
            yield splitter.read_value()
    if row_list is not None:
        while (first := splitter.peek()) != "}":
            if not first:
                raise BrokenJson("the text ends before the object is closed")
            splitter.read_value()
        splitter.skip_char()


def parse_object(data: bytes) -> dict[str, Any]:
    """Parses one JSON object.

    Raises:
      BadRow: it is not UTF-8, not JSON or not an object.

    >>> parse_object(b'{"output": "4"}')
    {'output': '4'}
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"0x{data[error.start]:02x} at byte {error.start + 1}"
        raise BadRow(f"not UTF-8: {byte} of the row; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos + 1} of the row"
        raise BadRow(f"not JSON: {where}; correct or remove the row") from None
    except RecursionError:
        raise BadRow("not JSON: nested too deeply; correct or remove the row") from None
    except ValueError as error:
        raise BadRow(f"not JSON: {error}; write the number as text") from None
    if not isinstance(value, dict):
        found = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
        name = found.get(type(value), "a number")
        raise BadRow(f"not an object: the row is {name}; write it as {{...}} with named columns")
    return value


def _read_object(row: str, number: int, data: bytes, header: Mapping[str, Any]) -> Record:
    try:
        value = parse_object(data)
    except BadRow as bad:
        return Record(row=row, number=number, raw=data, reason=str(bad))
    return Record(row=row, number=number, raw=data, value={**header, **value} if header else value)
