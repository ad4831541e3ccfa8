"""Which run some parts belong to: its description, and whether another one is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instructjax.errors import DataError, UsageError


def describe_files(files: Iterable[Path]) -> dict[str, str]:
    """Size and SHA-256 of data files, by name.

    Raises:
      DataError: a file cannot be read.
    """
    described = {}
    for file in files:
        try:
            size, digest = file.stat().st_size, digest_file(file)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", file=file) from error
        described[f"data {file}"] = f"{size} bytes, sha256 {digest}"
    return described


def check_same(earlier: Any, run: Mapping[str, str], folder: Path) -> None:
    """Refuses to go on with an earlier run that is not the same.

    Args:
      earlier: the description of the run that was stopped; None if it cannot be read.
      run: that of this one.
      folder: where the parts are, to name in messages.

    Raises:
      UsageError: they differ; it says in what.
      DataError: the earlier one cannot be read.
    """
    if not isinstance(earlier, dict):
        raise DataError(
            "the manifest of an earlier run is damaged",
            file=folder,
            remedy="start afresh with --overwrite",
        )
    names = [name for name in {**earlier, **run} if earlier.get(name) != run.get(name)]
    if names:
        changes = [
            f"{name} was {_shorten(earlier.get(name))} and is {_shorten(run.get(name))}"
            for name in names
        ]
        raise UsageError(
            f"an earlier run here was another: {'; '.join(changes)}",
            file=folder,
            remedy="run it as it was to go on, or start afresh with --overwrite",
        )


def _shorten(value: object) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_json(file: Path) -> Any:
    """The value in a file, or None if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def digest_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
