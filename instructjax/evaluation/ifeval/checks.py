"""What each verifiable constraint asks of a response: one pure function a kind.

The kinds and their meaning are those of IFEval (Zhou et al. 2023, arXiv 2311.07911). Counts of
words are of runs of letters and digits; keywords are regular expressions there, plain text here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from instructjax.evaluation.ifeval.sentences import count_sentences

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_DASHES = "‐‑‒–—"


def compare(count: int, relation: str, bound: int) -> bool:
    """Whether a count is "less than" or "at least" a bound.

    >>> compare(3, "less than", 3), compare(3, "at least", 3)
    (False, True)
    """
    return count < bound if relation == "less than" else count >= bound


# Keywords


def has_keywords(text: str, keywords: Sequence[str]) -> bool:
    """Whether every keyword occurs somewhere, within words too, whatever its case.

    >>> has_keywords("A catalog of dogs", ["CAT", "dog"])
    True
    """
    lowered = text.lower()
    return all(keyword.lower() in lowered for keyword in keywords)


def has_keyword_often(text: str, keyword: str, frequency: int, relation: str) -> bool:
    """Whether a keyword occurs less or at least as often as asked, within words too.

    >>> has_keyword_often("Cat, catalog, dog", "cat", 2, "at least")
    True
    """
    return compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def lacks_words(text: str, forbidden_words: Sequence[str]) -> bool:
    r"""Whether none of the words occurs as a word of its own, whatever its case.

    >>> lacks_words("A catalog", ["cat"]), lacks_words("A Cat.", ["cat"])
    (True, False)
    """
    pattern = "|".join(re.escape(word) for word in forbidden_words)
    return not re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE)


def has_letter_often(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Whether a letter occurs less or at least as often as asked, whatever its case.

    >>> has_letter_often("Banana", "A", 3, "at least")
    True
    """
    return compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


# Lengths


def has_sentences(text: str, num_sentences: int, relation: str) -> bool:
    """Whether there are less or at least as many sentences as asked; see `count_sentences`.

    >>> has_sentences("One. Two!", 2, "at least")
    True
    """
    return compare(count_sentences(text), relation, num_sentences)


def has_words(text: str, num_words: int, relation: str) -> bool:
    r"""Whether there are less or at least as many words (`\w+`) as asked: "don't" has two.

    >>> has_words("Don't go", 3, "at least")
    True
    """
    return compare(len(re.findall(r"\w+", text)), relation, num_words)


def has_paragraphs(text: str, num_paragraphs: int) -> bool:
    r"""Whether there are exactly so many paragraphs between dividers `***`, none of them empty.

    What is empty before the first or after the last divider is no paragraph.

    >>> has_paragraphs("One\n***\nTwo\n***", 2), has_paragraphs("One ****** Two", 2)
    (True, False)
    """
    parts = [part.strip() for part in text.split("***")]
    if not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == num_paragraphs


def has_paragraph_that_starts(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    r"""Whether there are so many paragraphs between blank lines, the nth begins with the word.

    Punctuation around the word does not count, nor does case; empty paragraphs are not counted but
    have a place.

    >>> has_paragraph_that_starts("One.\n\n'Two', he said.", 2, 2, "two")
    True
    """
    parts = [part.strip() for part in text.split("\n\n")]
    count = sum(1 for part in parts if part)
    if count != num_paragraphs or nth_paragraph > count or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# Content


def has_placeholders(text: str, num_placeholders: int) -> bool:
    """Whether there are at least so many placeholders in square brackets.

    >>> has_placeholders("Dear [name], of [city]", 2)
    True
    """
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def has_postscript(text: str, postscript_marker: str) -> bool:
    """Whether a postscript of the marker is there, "P.S." or "P.P.S" with or without blanks.

    >>> has_postscript("Bye. p. s. Hi", "P.S."), has_postscript("Bye. PS Hi", "P.S.")
    (True, False)
    """
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()))


# Formats


def has_bullets(text: str, num_bullets: int) -> bool:
    r"""Whether exactly so many lines begin with `*` or `-`; one that begins with `**` is none.

    >>> has_bullets("* a\n- b\n** c", 2)
    True
    """
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def has_one_of_answers(text: str) -> bool:
    """Whether one of IFEval's three answers is in it, letter by letter.

    >>> has_one_of_answers("Well. My answer is maybe.")
    True
    """
    return any(answer in text for answer in ANSWERS)


def has_highlights(text: str, num_highlights: int) -> bool:
    """Whether there are at least so many highlighted parts, `*so*` or `**so**`, none of them empty.

    >>> has_highlights("*a* and **b**, * *", 2)
    True
    """
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """Whether there are at least so many section marks: the word and a number.

    >>> has_sections("Section 1 a Section 2 b", "Section", 2)
    True
    """
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def is_json(text: str) -> bool:
    r"""Whether all of it is one JSON value, in a fenced block or not.

    >>> is_json('```json\n{"a": [1]}\n```'), is_json('Here: {"a": 1}')
    (True, False)
    """
    text = text.strip()
    for opening in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(opening)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    """Whether a line holds a title in double angular brackets.

    >>> has_title("<<poem of joy>>"), has_title("<< >>")
    (True, False)
    """
    titles = re.findall(r"<<[^\n]+>>", text)
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


# Combinations, beginning and end


def has_two_responses(text: str) -> bool:
    """Whether there are two different responses with six asterisks between them.

    >>> has_two_responses("Yes ****** No"), has_two_responses("Yes ****** Yes")
    (True, False)
    """
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    found = [part for part in parts if part]
    return len(found) == 2 and found[0] != found[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    """Whether it begins with the request, word for word, whatever its case.

    >>> repeats_prompt("Write a poem. Here it is.", "write a poem.")
    True
    """
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    """Whether it ends with a phrase, whatever its case, quotation marks at its ends left away.

    >>> ends_with('"Well. Any other questions?"', "any other questions?")
    True
    """
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    """Whether all of it stands between double quotation marks.

    >>> is_quoted(' "Yes." '), is_quoted('"')
    (True, False)
    """
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# Case and punctuation


def has_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """Whether words in capitals occur less or at least as often as asked.

    A word is what white space and punctuation bound; hyphens, apostrophes and full stops within it
    are parts of it.

    >>> has_capital_words("A U.S. WELL-KNOWN cat", 3, "at least")
    True
    """
    words = re.findall(rf"[^\W_]+(?:['’.\-_{_DASHES}][^\W_]+)*", text)
    return compare(sum(map(str.isupper, words)), capital_relation, capital_frequency)


def is_upper(text: str) -> bool:
    """Whether there are letters, all of them capital. That they are English is not checked.

    >>> is_upper("ALL OF 3"), is_upper("ALl"), is_upper("3")
    (True, False, False)
    """
    return text.isupper()


def is_lower(text: str) -> bool:
    """Whether there are letters, none of them capital. That they are English is not checked.

    >>> is_lower("all of 3")
    True
    """
    return text.islower()


def lacks_commas(text: str) -> bool:
    """Whether there is no comma.

    >>> lacks_commas("a; b")
    True
    """
    return "," not in text
