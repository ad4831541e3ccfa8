"""How many sentences an English text has, by rules that need no data."""

from __future__ import annotations

import re

# Ends in a full stop without ending a sentence, whatever comes next.
_TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "rev", "gen", "capt", "vs", "no"}
_TITLES |= {"e.g", "i.e", "cf", "al", "fig", "vol", "dept", "approx", "inc", "ltd", "co"}
_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")


def count_sentences(text: str) -> int:
    """Sentences of a text: a run of `.`, `!` or `?` ends one where white space follows.

    A full stop ends none after an initial, a title such as "Dr." or another usual abbreviation, a
    number that begins a line, or where a small letter follows. IFEval asks a trained tokenizer
    (Punkt), which needs data of its own; the two differ where abbreviations do.

    >>> count_sentences("Dr. J. Smith paid $3.50. Did he? Yes...")
    3
    >>> count_sentences("No full stop")
    1
    >>> count_sentences("")
    0
    """
    count, start = 0, 0
    for end in _END.finditer(text):
        if not _ends_sentence(text, start, end):
            continue
        count += any(map(str.isalnum, text[start : end.end()]))
        start = end.end()
    return count + any(map(str.isalnum, text[start:]))


def _ends_sentence(text: str, start: int, end: re.Match[str]) -> bool:
    if end.group()[0] != "." or end.group().startswith(".."):
        following = text[end.end() :].lstrip()
        return not (end.group()[0] in ".…" and following[:1].islower())
    before = text[start : end.start()]
    word = before.split()[-1].lstrip("(\"'“‘[*") if before.split() else ""
    following = text[end.end() :].lstrip()
    if following[:1].islower() or word.lower() in _TITLES:
        return False
    numbers_a_line = word.isdigit() and not before.rpartition("\n")[2].strip(" \t*-" + word)
    initial = len(word) == 1 and word.isupper() and word != "I"
    return not (numbers_a_line or initial)
