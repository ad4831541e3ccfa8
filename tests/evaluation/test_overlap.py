"""ROUGE-L and chrF are the libraries' numbers at the settings that papers use."""

from __future__ import annotations

import sys

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf

from instructjax.errors import UsageError
from instructjax.evaluation import chrf, exact_match, overlap, rouge_l, token_f1
from instructjax.evaluation.metrics import find_metrics

TEXTS = ["The cats were running.", "A cat runs", "ran the cat", "Größe 3,5 m!", "", "cat"]


def test_rouge_l_is_the_library_with_stemmer_and_maximum() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for prediction in TEXTS:
        expected = max(
            scorer.score(reference, prediction)["rougeL"].fmeasure for reference in TEXTS
        )
        assert rouge_l(prediction, TEXTS) == expected
        for reference in TEXTS:
            one = scorer.score(reference, prediction)["rougeL"].fmeasure
            assert rouge_l(prediction, [reference]) == one


def test_rouge_l_in_closed_form() -> None:
    # Longest common subsequence "a b d" of 4 and 5 words: P 3/4, R 3/5, F 2/3. Stems agree.
    assert rouge_l("aa bb xx dd", ["aa bb cc dd ee"]) == pytest.approx(2 / 3)
    assert rouge_l("running cats", ["run cat"]) == 1.0
    assert rouge_l("bb aa", ["aa bb"]) == 0.5
    assert rouge_l("x", []) == 0.0


def test_chrf_is_the_library_with_maximum() -> None:
    for prediction in TEXTS:
        each = [sentence_chrf(prediction, [reference]).score for reference in TEXTS]
        assert chrf(prediction, TEXTS) == max(each)
    # One character of two in common, n = 1 alone is effective: P 1/2, R 1, F2 = 5 P R / (4 P + R).
    assert chrf("ab", ["a"]) == pytest.approx(100 * 5 * 0.5 / 3)


@pytest.mark.parametrize(
    ("metric", "package", "module", "cached"),
    [
        ("rouge_l", "rouge-score", "rouge_score.rouge_scorer", "_rouge_scorer"),
        ("chrf", "sacrebleu", "sacrebleu.metrics.chrf", "_chrf_scorer"),
    ],
)
def test_a_missing_library_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, metric: str, package: str, module: str, cached: str
) -> None:
    getattr(overlap, cached).cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        find_metrics(metric)
    monkeypatch.undo()
    getattr(overlap, cached).cache_clear()
    find_metrics(metric)


def test_one_reference_is_a_text_and_not_its_characters() -> None:
    for metric, most in ((exact_match, 1), (token_f1, 1), (rouge_l, 1), (chrf, 100)):
        assert metric("b", "b c d e") < most == metric("b c", "b c")
