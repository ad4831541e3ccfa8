"""Text from data, made harmless and short: what a page, a table or a figure may show of it."""

from __future__ import annotations

import unicodedata

LIMIT = 240
# They change the direction of what follows them, in the page around them too.
_BIDI = {0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069, 0x200E, 0x200F}


def shorten(text: str, limit: int = LIMIT) -> str:
    r"""One line of at most so many characters; characters that steer are written as escapes.

    Markup is not touched: whoever writes HTML, LaTeX or Markdown escapes for it.

    >>> shorten("a  b\nc"), shorten("x" * 50, 10), shorten("a\u202eb\x1b[2J")
    ('a b c', 'xxxxxxxxx…', 'a\\u202eb\\x1b[2J')
    """
    # Cut first: a megabyte of blanks is no reason to look at all of it.
    line = " ".join(text[: 4 * limit].split())
    cut = len(line) > limit or len(text) > 4 * limit
    line = line[: limit - 1] if cut else line
    return "".join(map(_make_visible, line)) + ("…" if cut else "")


def _make_visible(character: str) -> str:
    code = ord(character)
    if code in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn"):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
