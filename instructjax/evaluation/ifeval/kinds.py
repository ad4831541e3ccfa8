"""The kinds of verifiable constraints: which check each is, and the arguments that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from instructjax.errors import DataError
from instructjax.evaluation.ifeval import checks

KINDS: dict[str, Callable[..., bool]] = {
    "keywords:existence": checks.has_keywords,
    "keywords:frequency": checks.has_keyword_often,
    "keywords:forbidden_words": checks.lacks_words,
    "keywords:letter_frequency": checks.has_letter_often,
    "length_constraints:number_sentences": checks.has_sentences,
    "length_constraints:number_paragraphs": checks.has_paragraphs,
    "length_constraints:number_words": checks.has_words,
    "length_constraints:nth_paragraph_first_word": checks.has_paragraph_that_starts,
    "detectable_content:number_placeholders": checks.has_placeholders,
    "detectable_content:postscript": checks.has_postscript,
    "detectable_format:number_bullet_lists": checks.has_bullets,
    "detectable_format:constrained_response": checks.has_one_of_answers,
    "detectable_format:number_highlighted_sections": checks.has_highlights,
    "detectable_format:multiple_sections": checks.has_sections,
    "detectable_format:json_format": checks.is_json,
    "detectable_format:title": checks.has_title,
    "combination:two_responses": checks.has_two_responses,
    "combination:repeat_prompt": checks.repeats_prompt,
    "startend:end_checker": checks.ends_with,
    "startend:quotation": checks.is_quoted,
    "change_case:capital_word_frequency": checks.has_capital_words,
    "change_case:english_capital": checks.is_upper,
    "change_case:english_lowercase": checks.is_lower,
    "punctuation:no_comma": checks.lacks_commas,
}
# Needs a language identifier; a row that has it is not scored.
UNCHECKED = frozenset({"language:response_language"})

_RELATIONS = ("less than", "at least")


def bind(kind: str, arguments: Mapping[str, Any], row: str) -> Callable[[str], bool]:
    """The check of a constraint as a function of the response.

    Args:
      kind: one of `KINDS`.
      arguments: its own among those of the row; null ones are none, others are ignored as IFEval's
        tables give every constraint every column.
      row: the row's id, to name in messages.

    Raises:
      DataError: an unknown kind, an argument that is missing or of another type.

    >>> bind("length_constraints:number_words", {"num_words": 2, "relation": "less than"}, "a")(
    ...     "Yes"
    ... )
    True
    """
    if kind not in KINDS:
        raise DataError(
            f"there is no verifiable constraint {kind!r:.80}",
            row=row,
            remedy=f"`instruction_id_list` may have {', '.join(KINDS)}",
        )
    check = KINDS[kind]
    given: dict[str, Any] = {}
    for name in list(inspect.signature(check).parameters)[1:]:
        given[name] = _check_argument(kind, name, arguments.get(name), row)
    return lambda text: check(text, **given)


def _check_argument(kind: str, name: str, value: Any, row: str) -> Any:
    if name in ("keywords", "forbidden_words"):
        value = list(value) if isinstance(value, list | tuple) else value
        fits = isinstance(value, list) and bool(value) and all(map(_is_text, value))
        wanted = "a list of texts"
    elif name.endswith("relation"):
        fits, wanted = value in _RELATIONS, " or ".join(map(repr, _RELATIONS))
    elif name.startswith("num_") or name.endswith("frequency") or name == "nth_paragraph":
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of whole numbers with gaps
        least = 1 if name == "nth_paragraph" else 0
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        wanted = f"a whole number from {least}"
    else:
        fits, wanted = _is_text(value), "a text"
    if not fits:
        raise DataError(
            f"{name} of the constraint {kind} is {value!r:.80}",
            row=row,
            remedy=f"give {wanted} in `kwargs`",
        )
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
