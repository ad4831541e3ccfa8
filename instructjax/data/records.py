"""What every reader yields: one record of a file, its place, and what is wrong with it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

READ_ERRORS = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record: its place, and either its columns or the reason it has none."""

    row: str
    number: int
    raw: object
    value: Mapping[str, Any] | None = None
    reason: str = ""


def open_bytes(path: Path) -> BufferedIOBase:
    """Opens a file for reading, unpacked if it ends in .gz."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    return cast(BufferedIOBase, opener(path, "rb"))


def lose_rest(noun: str, place: int, number: int, detail: object, raw: object) -> Record:
    """Returns the record that stands for all that could not be read from a place on."""
    reason = f"broken file: {detail}; nothing after this place was read: repair the file"
    return Record(row=f"{noun} {place} and everything after", number=number, raw=raw, reason=reason)
