"""Errors that say where, what and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

# The exit code of who was told to stop, as shells have it for SIGTERM.
STOPPED = 143


class InstructJaxError(Exception):
    """A failure that a person can act on.

    Args:
      message: what went wrong, in one sentence.
      file: the file it happened in.
      row: where in the file ("line 12", "row 3", "record 7"), or an example's id.
      remedy: what to do about it.

    >>> print(InstructJaxError("no response", file="a.jsonl", row="line 3", remedy="add `output`"))
    a.jsonl, line 3: no response; add `output`
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        row: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.row = row
        self.remedy = remedy
        super().__init__(message)

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.file, self.row) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}; {self.remedy}" if self.remedy else text


class UsageError(InstructJaxError):
    """The call itself is wrong: an unknown option, a value out of range, a missing file."""

    exit_code = 2


def exit_code_of(error: BaseException) -> int:
    """With which a command ends that an error has ended.

    >>> [exit_code_of(e) for e in (UsageError("no"), KeyboardInterrupt(), SystemExit(3), OSError())]
    [2, 130, 3, 1]
    """
    if isinstance(error, InstructJaxError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1


class DataError(InstructJaxError):
    """A row or a data file cannot be used."""


class PromptError(InstructJaxError):
    """A row cannot be turned into token ids that are exactly its text."""


class ModelError(InstructJaxError):
    """A model, checkpoint or tokenizer cannot be loaded faithfully."""


def remedy_for_writing(error: OSError) -> str:
    """What to do about a file that cannot be written.

    >>> remedy_for_writing(OSError(errno.ENOSPC, "No space left on device"))
    'make space'
    >>> remedy_for_writing(OSError(errno.EACCES, "Permission denied"))
    'see that the folder can be written'
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "make space" if full else "see that the folder can be written"
