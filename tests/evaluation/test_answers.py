"""Exact match and F1 against SQuAD's published behaviour and closed forms."""

from __future__ import annotations

from fractions import Fraction

import pytest

from instructjax.evaluation import exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.", "us"),  # punctuation goes before articles are looked for
        ("an A.N. Other", "other"),
        ("thea ter", "thea ter"),
        ("a-b", "ab"),
        ("  x \n y\t", "x y"),
        ("“Curly”", "“curly”"),  # ASCII punctuation only
        ("The", ""),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_exact_match_takes_any_reference() -> None:
    assert exact_match("The Cat!", ["dog", "cat"]) == 1.0
    assert exact_match("cats", ["dog", "cat"]) == 0.0
    assert exact_match("", ["the"]) == 1.0
    assert exact_match("cat", []) == 0.0


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("x y z", ["x y"], Fraction(4, 5)),  # P 2/3, R 1
        ("x x y", ["x y y"], Fraction(2, 3)),  # words count as often as they occur
        ("x", ["y", "x y", "x y z"], Fraction(2, 3)),  # best of 0, 2/3, 1/2
        ("", ["x"], Fraction(0)),
        ("x", ["the"], Fraction(0)),
        ("a", ["the"], Fraction(1)),  # nothing is left of either
    ],
)
def test_f1_in_closed_form(prediction: str, references: list[str], expected: Fraction) -> None:
    assert token_f1(prediction, references) == pytest.approx(float(expected), abs=1e-15)
