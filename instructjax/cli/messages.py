"""Lines for a person on standard error."""

from __future__ import annotations

import sys
from typing import Any


def say_error(text: str, *, label: str = "error: ") -> None:
    """Writes one line; control characters of file names and rows are escaped."""
    print(f"{label}{escape_controls(text)}", file=sys.stderr, flush=True)


def say_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Writes one line of a warning to the user, without the place in the code that it came from;
    those to developers are left out. In the place of `warnings.showwarning`."""
    if issubclass(category, UserWarning):
        say_error(str(message).partition("\n")[0], label="warning: ")


def escape_controls(text: str) -> str:
    r"""Returns the text with nothing in it that could steer a terminal.

    >>> escape_controls("a\x1b[2J é\n")
    'a\\x1b[2J é\\n'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
