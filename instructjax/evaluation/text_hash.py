"""What identifies an instruction or an input: its text, not a name that somebody gave it."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable


def normalize_text(text: str) -> str:
    r"""The text that identity is told by: NFKC, runs of white space as one blank, none at the ends.

    Case counts: "a" and "A" are different inputs where letters are what is asked about.

    >>> normalize_text("Add  the\u00a0numbers.\n")
    'Add the numbers.'
    """
    return " ".join(unicodedata.normalize("NFKC", text).split())


def text_hash(text: str) -> str:
    """128 bits of SHA-256 of a text as `normalize_text` gives it, in hexadecimal.

    Two texts with the same hash are the same instruction (or input), whatever their names are.

    >>> text_hash("Add the numbers.") == text_hash(" Add the  numbers. ")
    True
    >>> text_hash("")
    'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(normalize_text(text).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def ids_hash(ids: Iterable[int]) -> str:
    """The same of a prompt that is given as token ids.

    >>> ids_hash([1, 2]) == text_hash("token ids 1 2")
    True
    """
    return text_hash(" ".join(["token ids", *map(str, ids)]))
