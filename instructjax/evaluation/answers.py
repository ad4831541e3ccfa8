"""Exact match and token F1 of short answers, with the normalization of SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space.

    In this order, as in SQuAD's evaluation (Rajpurkar et al. 2016). Of "A", "the" and "+" nothing
    is left, so that they match each other and an empty text: lettered choices are for
    `rank_accuracy`.

    >>> normalize_answer(" The  Eiffel Tower! ")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def list_references(references: str | Sequence[str]) -> Sequence[str]:
    """One reference or several, as several.

    >>> list_references("yes"), list_references(["yes", "no"])
    (('yes',), ['yes', 'no'])
    """
    return (references,) if isinstance(references, str) else references


def exact_match(prediction: str, references: str | Sequence[str]) -> float:
    """1 if the prediction is one of the references after `normalize_answer`, else 0.

    >>> exact_match("the Eiffel tower.", ["Big Ben", "Eiffel Tower"])
    1.0
    """
    found = normalize_answer(prediction)
    wanted = map(normalize_answer, list_references(references))
    return float(any(found == reference for reference in wanted))


def token_f1(prediction: str, references: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, the best over the references.

    Words are those of `normalize_answer`, counted as often as they occur. Where the prediction or
    the reference has none, it is 1 if both have none, else 0 (as in SQuAD 2.0).

    Two of three predicted words are right, and two of two wanted words are there:

    >>> token_f1("in Eiffel Tower", ["Big Ben", "the Eiffel Tower"])
    0.8
    """
    return max((_f1(prediction, one) for one in list_references(references)), default=0.0)


def _f1(prediction: str, reference: str) -> float:
    found, wanted = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))
