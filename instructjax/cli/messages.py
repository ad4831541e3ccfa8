"""Lines for a person on standard error."""

from __future__ import annotations

import sys


def say_error(text: str, *, label: str = "error: ") -> None:
    """Writes one line; control characters of file names and rows are escaped."""
    print(f"{label}{escape_controls(text)}", file=sys.stderr, flush=True)


def escape_controls(text: str) -> str:
    r"""Returns the text with nothing in it that could steer a terminal.

    >>> escape_controls("a\x1b[2J é\n")
    'a\\x1b[2J é\\n'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
