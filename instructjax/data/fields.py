"""Column names as a command line gives them."""

from __future__ import annotations

from instructjax.errors import UsageError


def parse_fields(pairs: tuple[str, ...]) -> dict[str, str]:
    """Column names by the contract's names.

    Raises:
      UsageError: a part without "=", or one name twice.

    >>> parse_fields(("instruction=question", "output=a=b"))
    {'instruction': 'question', 'output': 'a=b'}
    """
    fields: dict[str, str] = {}
    for pair in pairs:
        name, sign, column = pair.partition("=")
        if not (name and sign and column) or name in fields:
            raise UsageError(
                f"--field {pair!r} " + ("comes twice" if name in fields else "is no NAME=COLUMN"),
                remedy="write for example --field instruction=question --field output=answer",
            )
        fields[name] = column
    return fields
