"""Verifiable constraints against the checkers that lm-evaluation-harness has of IFEval."""

from __future__ import annotations

import importlib
import random
import re
import sys
import types
from typing import Any

import pytest

from instructjax.errors import DataError
from instructjax.evaluation.ifeval.kinds import KINDS, UNCHECKED
from instructjax.evaluation.ifeval.sentences import count_sentences
from instructjax.evaluation.ifeval.verify import (
    follow_loose,
    follow_strict,
    read_constraints,
    relax,
)

RESPONSES = [
    "Hello world.",
    "* one\n* two\n- three\n** no\n  * four",
    "Cat catalog CAT, dog.\n\nSecond paragraph here\n\n'Third', she said.",
    '```json\n{"a": [1, 2]}\n```',
    '{"a": 1',
    "[1]",
    "<<My Title>>\nText *high* and **bold** and * * and ****\n\nP.S. Bye",
    "<< >>",
    "My answer is yes.",
    "One\n***\nTwo\n***\nThree",
    "***\nOne *** Two\n***",
    "One *** *** Two",
    "Yes ****** No",
    "Yes ****** Yes",
    "A ****** B ****** C",
    "****** A ****** B",
    '"All of it."',
    '"',
    "Dear [name], of [city] [a\nb]",
    "Section 1 a\nSection2 b SECTION 3",
    "WE ARE ALL CAPITALS, NASA U.S. 3",
    "all lower, well-known",
    "Write a poem. Roses are red. Any other questions?",
    'Roses. Any other questions?"',
    "p.p.s later\nP. S. hi",
    "Well\n*Section 1* is JSON.\nbye",
    "",
    "   \n",
]
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "keywords:existence": [{"keywords": ["cat", "DOG"]}, {"keywords": ["roses"]}],
    "keywords:frequency": [
        {"keyword": "cat", "frequency": n, "relation": r}
        for n in (1, 3)
        for r in ("at least", "less than")
    ],
    "keywords:forbidden_words": [{"forbidden_words": ["catalog", "yes"]}],
    "keywords:letter_frequency": [
        {"letter": "A", "let_frequency": 4, "let_relation": r} for r in ("at least", "less than")
    ],
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (1, 2, 3)],
    "length_constraints:number_words": [
        {"num_words": 5, "relation": r} for r in ("at least", "less than")
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "Third"},
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "second"},
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "hello"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": n} for n in (1, 2, 3)],
    "detectable_content:postscript": [
        {"postscript_marker": marker} for marker in ("P.S.", "P.P.S", "Bye")
    ],
    "detectable_format:number_bullet_lists": [{"num_bullets": n} for n in (1, 4)],
    "detectable_format:number_highlighted_sections": [{"num_highlights": n} for n in (1, 2, 3, 4)],
    "detectable_format:multiple_sections": [
        {"section_spliter": "Section", "num_sections": n} for n in (1, 2, 3)
    ],
    "combination:repeat_prompt": [{"prompt_to_repeat": "write a poem."}],
    "startend:end_checker": [{"end_phrase": "Any other questions?"}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": n, "capital_relation": r}
        for n in (1, 6)
        for r in ("at least", "less than")
    ],
}
# Theirs needs a trained sentence tokenizer.
COMPARED = sorted(KINDS.keys() - {"length_constraints:number_sentences"})


@pytest.fixture(scope="module")
def harness() -> Any:
    """IFEval's checkers, in English only, and without the data of a sentence tokenizer."""
    nltk = pytest.importorskip("nltk")
    patch = pytest.MonkeyPatch()
    langdetect: Any = types.ModuleType("langdetect")
    langdetect.detect = lambda text: "en"
    langdetect.LangDetectException = type("LangDetectException", (Exception,), {})
    patch.setitem(sys.modules, "langdetect", langdetect)
    immutabledict: Any = types.ModuleType("immutabledict")
    immutabledict.immutabledict = dict
    patch.setitem(sys.modules, "immutabledict", immutabledict)
    patch.setattr(nltk.data, "find", lambda name: name)
    split = nltk.tokenize.NLTKWordTokenizer().tokenize
    patch.setattr(nltk, "word_tokenize", split)
    try:
        yield importlib.import_module("lm_eval.tasks.ifeval.utils")
    finally:
        patch.undo()


def make_input(harness: Any, kinds: list[str], arguments: list[dict[str, Any]]) -> Any:
    return harness.InputExample(key=1, instruction_id_list=kinds, prompt="", kwargs=arguments)


@pytest.mark.parametrize("kind", COMPARED)
def test_a_kind_is_what_the_harness_checks(harness: Any, kind: str) -> None:
    seen = set()
    for arguments in ARGUMENTS.get(kind, [{}]):
        row = {"instruction_id_list": [kind], "kwargs": [arguments]}
        constraints = read_constraints(row, "a")
        assert constraints is not None
        given = make_input(harness, [kind], [arguments])
        for response in RESPONSES:
            strict = harness.test_instruction_following_strict(given, response)
            loose = harness.test_instruction_following_loose(given, response)
            shown = (kind, arguments, response)
            found = follow_strict(response, constraints)
            assert found == list(map(bool, strict.follow_instruction_list)), shown
            found_loosely = follow_loose(response, constraints)
            assert found_loosely == list(map(bool, loose.follow_instruction_list)), shown
            seen.update(found)
    assert seen == {True, False}  # the responses tell them apart


def test_random_texts_of_marks(harness: Any) -> None:
    rng = random.Random(0)
    pieces = ["***", "******", "*", "a", "B c", "\n", "\n\n", '"', "P.S.", "[x]", "- ", "Section 1"]
    pieces += ["<<t>>", ",", "{}", "```"]
    cases = [(kind, args) for kind in COMPARED for args in ARGUMENTS.get(kind, [{}])]
    for _ in range(150):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 9)))
        kind, arguments = rng.choice(cases)
        constraints = read_constraints({"instruction_id_list": [kind], "kwargs": [arguments]}, "a")
        assert constraints is not None
        given = make_input(harness, [kind], [arguments])
        strict = harness.test_instruction_following_strict(given, text)
        loose = harness.test_instruction_following_loose(given, text)
        found = (follow_strict(text, constraints), follow_loose(text, constraints))
        expected = (strict.follow_instruction_list, loose.follow_instruction_list)
        assert found == tuple([bool(x) for x in one] for one in expected), (kind, arguments, text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Mr. Smith met Dr. J. Doe at 5.30 p.m. yesterday.", 1),
        ("It costs 3.5 dollars... or so. Really?!", 2),
        ('He said "Go!" Then he left.', 2),
        ("1. First point.\n2. Second point.", 2),
        ("e.g. this, i.e. that.", 1),
        ("No end", 1),
        ("* - !", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_relaxed_forms_are_those_of_the_paper() -> None:
    forms = relax("first\n*mid*\nlast")
    assert len(forms) == 8
    assert set(forms) == {
        "first\n*mid*\nlast",
        "*mid*\nlast",
        "first\n*mid*",
        "*mid*",
        "first\nmid\nlast",
        "mid\nlast",
        "first\nmid",
        "mid",
    }


def test_what_cannot_be_checked_is_told() -> None:
    row = {"instruction_id_list": ["language:response_language", "punctuation:no_comma"]}
    constraints = read_constraints(row, "a")
    assert constraints is not None and len(constraints) == 1
    assert set(constraints.unchecked) == set(UNCHECKED)
    assert read_constraints({}, "a") is None
    assert read_constraints({"instruction_id_list": []}, "a") is None


def test_columns_as_json_text() -> None:
    row = {"instruction_id_list": '["length_constraints:number_words"]'}
    row["kwargs"] = '[{"num_words": 2, "relation": "at least", "keywords": null}]'
    constraints = read_constraints(row, "a")
    assert constraints is not None and follow_strict("One two", constraints) == [True]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction_id_list": ["no:such"]}, "no verifiable constraint 'no:such'"),
        ({"instruction_id_list": "x"}, "`instruction_id_list` is no list"),
        ({"instruction_id_list": [3]}, "`instruction_id_list` is no list"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "arguments for 0"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [1]}, "no object"),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{}]},
            "num_words of the constraint length_constraints:number_words is None",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "relation of the constraint .* is 'about'",
        ),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "cat"}]},
            "keywords of the constraint",
        ),
    ],
)
def test_rows_that_are_wrong_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.compile(f"^row 7: {message}|{message}")) as caught:
        read_constraints(row, "row 7")
    assert caught.value.row == "row 7"
