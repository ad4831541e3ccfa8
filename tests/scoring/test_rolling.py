"""Long documents: BOS in every window, and the numbers of each window alone."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from instructjax.data import Example
from instructjax.errors import DataError, UsageError
from instructjax.scoring import Work, score, score_document, score_documents


@pytest.mark.parametrize("bos", ["every", "first", "never"])
def test_a_window_is_what_it_is_alone(random_model: Any, decode_by_hand: Any, bos: Any) -> None:
    model = random_model(seed=8)
    prefix = model.tokenizer.bos_id
    ids = np.random.default_rng(0).integers(3, 61, 23).tolist()
    found = score_document(model, ids, max_length=8, stride=5, bos=bos)
    windows = {  # (first seen, first scored, end), with BOS before it or not
        "every": [(0, 0, 8, 1), (5, 8, 13, 1), (10, 13, 18, 1), (15, 18, 23, 1)],
        "first": [(0, 0, 8, 1), (4, 8, 13, 0), (9, 13, 18, 0), (14, 18, 23, 0)],
        "never": [(0, 1, 9, 0), (5, 9, 14, 0), (10, 14, 19, 0), (14, 19, 23, 0)],
    }[bos]
    expected = []
    for begin, start, stop, lead in windows:
        logs = decode_by_hand(model, [prefix] * lead + ids[begin:stop])
        expected += [logs[lead + i - begin - 1, ids[i]] for i in range(start, stop)]
    np.testing.assert_allclose(found.token_log_probs, expected, atol=2e-5)
    assert found.token_ids.tolist() == ids[bos == "never" :] and found.num_windows == 4
    assert found.log_prob == pytest.approx(math.fsum(expected), abs=1e-3)


def test_pitfall_3_bos_in_every_window(random_model: Any) -> None:
    # Three equal blocks in disjoint windows: equal numbers, only if all windows begin alike.
    model = random_model(seed=8)
    block = [7, 12, 30, 4]
    found = score_document(model, block * 3, max_length=4).token_log_probs.reshape(3, 4)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    for bos in ("first", "never"):
        other = score_document(model, block * 3, max_length=4, bos=bos).token_log_probs
        assert abs(float(other[-4] - found[2, 0])) > 1e-3


def test_a_short_document_is_one_response_to_nothing(tiny_model: Any) -> None:
    text = "The cat sat on the mat. 1 and 2 is 3."
    found = score_document(tiny_model, text)
    ids = tiny_model.tokenizer.encode(text).tolist()
    twin = score(
        tiny_model,
        Example(prompt_ids=[tiny_model.tokenizer.bos_id], output_ids=ids),
        progress=False,
    )
    np.testing.assert_allclose(found.token_log_probs, twin.token_log_probs[0], atol=1e-5)
    assert found.num_windows == 1 and found.num_bytes == len(text.encode())
    nats = -twin.log_prob[0]
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert found.log_prob_per_token == pytest.approx(-nats / len(ids), rel=1e-5)


def test_more_context_with_a_smaller_stride(tiny_model: Any) -> None:
    text = "The cat sat on the mat. " * 30 + "é"
    docs = {n: score_document(tiny_model, text, max_length=64, stride=n) for n in (64, 16)}
    assert docs[64].num_tokens == docs[16].num_tokens
    assert docs[64].num_bytes == docs[16].num_bytes == len(text.encode())
    assert docs[16].num_windows > docs[64].num_windows
    np.testing.assert_allclose(
        docs[16].token_log_probs[:64], docs[64].token_log_probs[:64], atol=1e-5
    )


def test_a_stream_of_documents_in_order(tiny_model: Any) -> None:
    texts = ["a b c " * n for n in (50, 1, 7, 120)]
    work = Work()
    found = list(score_documents(tiny_model, iter(texts), max_length=32, stride=20, work=work))
    assert work.distinct > 0
    for text, one in zip(texts, found, strict=True):
        alone = score_document(tiny_model, text, max_length=32, stride=20)
        np.testing.assert_allclose(one.token_log_probs, alone.token_log_probs, atol=1e-5)
        assert (one.num_bytes, one.num_windows) == (len(text), alone.num_windows)


def test_a_document_without_bytes(random_model: Any) -> None:
    # A model may have more embeddings than its tokenizer has tokens.
    model = random_model(vocab_size=400)
    found = score_document(model, [399, 398])
    assert found.num_tokens == 2 and found.num_bytes == 0
    assert math.isnan(found.bits_per_byte) and found.log_prob < 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"max_length": 9, "stride": 10}, "stride is 10; give a number from 1 to 9"),
        ({"max_length": 257}, "max_length is 257"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_wrong_options(tiny_model: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        score_documents(tiny_model, ["a b"], **options)


def test_wrong_documents(tiny_model: Any) -> None:
    with pytest.raises(DataError, match="document 2: there is no token"):
        list(score_documents(tiny_model, ["a b", ""]))
    unchecked: Any = getattr(score_documents, "__wrapped__", score_documents)
    with pytest.raises(UsageError, match="one text is given"):
        unchecked(tiny_model, "a b")
    with pytest.raises(UsageError, match="there is no bos 'always'"):
        unchecked(tiny_model, ["a b"], bos="always")


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (None, {}, "texts are of type NoneType"),
        ({"text": "a"}, {}, "texts are of type dict"),
        (["a"], {"max_length": 1.5}, "max_length is 1.5"),
        (["a"], {"max_length": "9"}, "max_length is '9'"),
        (["a"], {"stride": 1.5}, "stride is 1.5"),
    ],
)
def test_wrong_calls_without_a_check_of_types(
    tiny_model: Any, texts: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        inspect.unwrap(score_documents)(tiny_model, texts, **options)
