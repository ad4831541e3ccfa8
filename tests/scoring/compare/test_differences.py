"""Differences of scores: of two contexts, two models and two files, on the same y or not at all."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from instructjax.data import Example
from instructjax.errors import DataError
from instructjax.prompts import Tokenizer
from instructjax.scoring import compare_scores, read_scores, score

EXAMPLES = [
    Example(instruction="Add.", input=f"{i} and 2", output=["3", "4 and more"], id=f"e{i}")
    for i in range(3)
]


@pytest.fixture(scope="module")
def scores(tiny_model: Any) -> Any:
    return score(tiny_model, EXAMPLES, contexts="cz,c", progress=False)


def test_two_contexts(scores: Any, tmp_path: Path) -> None:
    a, b = (scores.select(lambda row, n=name: row.context == n) for name in ("cz", "c"))
    found = compare_scores(a, b)
    assert len(found) == 6 and set(found.contexts) == {("cz", "c")}
    assert found.ids == ("e0", "e0", "e1", "e1", "e2", "e2")
    assert found.candidate.tolist() == [0, 1] * 3
    total, tokens, largest = 0.0, 0, 0.0
    for i in range(6):
        p, q = a.token_log_probs[i].tolist(), b.token_log_probs[i].tolist()
        by_hand = [x - y for x, y in zip(p, q, strict=True)]
        np.testing.assert_allclose(found.token_log_probs[i], by_hand, atol=1e-6)
        assert found.log_prob[i] == pytest.approx(math.fsum(by_hand), abs=1e-5)
        assert found.log_prob_per_token[i] == pytest.approx(math.fsum(by_hand) / len(p), abs=1e-5)
        total, tokens = total + math.fsum(by_hand), tokens + len(p)
        largest = max(largest, *map(abs, by_hand))
    assert found.mean_per_token == pytest.approx(total / tokens, abs=1e-5)
    assert found.largest == pytest.approx(largest, abs=1e-5)
    # The same from files.
    a.save(tmp_path / "a.parquet")
    b.save(tmp_path / "b.jsonl")
    from_files = compare_scores(
        read_scores(tmp_path / "a.parquet"), read_scores(tmp_path / "b.jsonl")
    )
    np.testing.assert_allclose(from_files.log_prob, found.log_prob, atol=1e-6)
    assert from_files.metadata_a["model"] == found.metadata_b["model"] == "llama-tied"


def test_a_model_with_itself(scores: Any) -> None:
    found = compare_scores(scores, scores)
    assert not found.log_prob.any() and found.largest == 0 == found.mean_per_token


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:-1], "12 rows on one side and 11"),
        (lambda s: s[::-1], r"row 1 \('e0' and 'e2'\): the two sides differ in id"),
        (lambda s: s[[2, 3, 0, 1, *range(4, 12)]], "row 1 .* differ in candidate"),
    ],
)
def test_other_rows_are_refused(scores: Any, change: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare_scores(scores, change(scores))


def test_other_tokens_are_refused(tiny_model: Any) -> None:
    a, b = (
        score(tiny_model, Example(prompt_ids=[1, 5], output_ids=y, id="q"), progress=False)
        for y in ([7, 8], [7, 9])
    )
    with pytest.raises(DataError, match="row 1 .*differ in token_ids"):
        compare_scores(a, b)
    # Equal ids that another tokenizer spells differently.
    model = tokenizers.models.BPE({c: i for i, c in enumerate("zyxwvutsrq")}, [])
    backend = tokenizers.Tokenizer(model)
    other = dataclasses.replace(a, tokenizer=Tokenizer(backend))
    with pytest.raises(DataError, match="the text of the tokens"):
        compare_scores(a, other)
    # In tables, too, where the text is not there.
    about = {**a.metadata, "vocabulary_fingerprint": other.tokenizer.vocabulary_fingerprint}
    other = dataclasses.replace(other, metadata=about)
    for pair in ((a.to_arrow(), other.to_arrow()), (a, other.to_arrow()), (other.to_arrow(), a)):
        with pytest.raises(DataError, match="are of two vocabularies"):
            compare_scores(*pair)
    assert len(compare_scores(a.to_arrow(), a)) == 1


def test_no_rows(tiny_model: Any) -> None:
    empty = score(tiny_model, [], progress=False)
    found = compare_scores(empty, empty)
    assert len(found) == 0 and found.largest == 0 and math.isnan(found.mean_per_token)
