"""ROUGE-L and chrF, as the libraries that papers use compute them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from instructjax.errors import UsageError
from instructjax.evaluation.answers import list_references


def rouge_l(prediction: str, references: str | Sequence[str]) -> float:
    """ROUGE-L F-measure, 0 to 1, the best over the references.

    Through `rouge-score` with the settings of Super-NaturalInstructions (Wang et al. 2022): Porter
    stemmer, F1 of the longest common subsequence of words, maximum over the references. Its
    tokenizer keeps a-z and 0-9 only: text in other scripts has no words, and gives 0.

    Of "the cat sat" the subsequence "the cat" has 2 of 3 predicted and 2 of 2 wanted words:

    >>> rouge_l("The cat sat.", ["a dog", "the cats"])
    0.8

    Raises:
      UsageError: `rouge-score` is not installed.
    """
    scorer = _rouge_scorer()
    scores = (scorer.score(one, prediction) for one in list_references(references))
    return max((float(score["rougeL"].fmeasure) for score in scores), default=0.0)


def chrf(prediction: str, references: str | Sequence[str]) -> float:
    """Sentence chrF2 (Popović 2015), 0 to 100, the best over the references.

    Through `sacrebleu` at its defaults: character 6-grams without white space, no words, beta 2,
    effective order.

    >>> chrf("the cat", ["the cat"])
    100.0
    >>> chrf("abc", ["xyz"])
    0.0

    Raises:
      UsageError: `sacrebleu` is not installed.
    """
    scorer = _chrf_scorer()
    scores = (scorer.sentence_score(prediction, [one]) for one in list_references(references))
    return max((float(score.score) for score in scores), default=0.0)


def check_installed(metric: str) -> None:
    """Raises a UsageError if what a metric is computed by is not installed."""
    if metric == "rouge_l":
        _rouge_scorer()
    elif metric == "chrf":
        _chrf_scorer()


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _make_error("rouge_l", "rouge-score", error) from None
    return RougeScorer(["rougeL"], use_stemmer=True)


@cache
def _chrf_scorer() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise _make_error("chrf", "sacrebleu", error) from None
    return CHRF()


def _make_error(metric: str, package: str, error: ImportError) -> UsageError:
    return UsageError(
        f"the metric {metric} needs {package}, which cannot be imported ({error})",
        remedy=f"run `pip install {package}`, or leave the metric out",
    )
