"""What identifies an instruction or an input: its text, not a name that somebody gave it."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable


def normalize_text(text: str, *, fold_case: bool = False) -> str:
    r"""The text by which an instruction or an input is known.

    Unicode NFKC (full-width forms, ligatures, composed accents), then every run of white space
    becomes one blank, and none is left at the ends. Case counts unless `fold_case`: "a" and "A" are
    different inputs where letters are what is asked about.

    >>> normalize_text("  Ｔranslate\u00a0this:\n")
    'Translate this:'
    >>> normalize_text("STRASSE", fold_case=True) == normalize_text("Straße", fold_case=True)
    True
    """
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if fold_case:
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split())


def text_hash(text: str, *, fold_case: bool = False) -> str:
    """128 bits of SHA-256 of a text as `normalize_text` gives it, in hexadecimal.

    Two texts with the same hash are the same instruction (or input), whatever their names are.

    >>> text_hash("Add. ") == text_hash("Add."), text_hash("add.") == text_hash("Add.")
    (True, False)
    >>> text_hash("")
    'e3b0c44298fc1c149afbf4c8996fb924'
    """
    data = normalize_text(text, fold_case=fold_case).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:32]


def ids_hash(ids: Iterable[int]) -> str:
    """The same of a prompt that is given as token ids.

    >>> ids_hash([1, 2]) == text_hash("token ids 1 2")
    True
    """
    return text_hash(" ".join(["token ids", *map(str, ids)]))
