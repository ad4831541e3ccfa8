"""Long documents: every token once, BOS in every window, the numbers of each window alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import Example
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.scoring import find_windows, score, score_document, score_documents


@given(st.integers(0, 200), st.integers(1, 40), st.data(), st.sampled_from([0, 1]))
def test_every_token_is_scored_once(n: int, length: int, data: Any, prefix: int) -> None:
    stride = data.draw(st.integers(1, length))
    windows = find_windows(n, max_length=length, stride=stride, prefix=prefix)
    scored = [i for _, start, stop in windows for i in range(start, stop)]
    assert scored == list(range(1 - prefix, n))
    for k, (begin, start, stop) in enumerate(windows):
        assert 0 <= begin <= start < stop
        # What the model computes: the prefix and all tokens but the last.
        assert prefix + stop - begin - 1 <= length
        assert prefix + start - begin >= 1  # something comes before the first scored token
        if k:
            assert stop - start <= stride
            assert prefix + start - begin >= length - stride + 1


def test_windows_as_in_lm_evaluation_harness() -> None:
    # Its `get_rolling_token_windows` with max_seq_len=4, context_len=1 for ten tokens predicts
    # 0-3, 4-7 and 8-9, the last window reaching back to be as full as the others.
    windows = find_windows(10, max_length=4, stride=4, prefix=0)
    assert [(a, b) for _, a, b in find_windows(10, max_length=4, stride=4)] == [
        (0, 4),
        (4, 8),
        (8, 10),
    ]
    assert windows[1] == (4, 5, 9)


def test_a_window_is_what_it_is_alone(random_model: Any, decode_by_hand: Any) -> None:
    model = random_model(seed=8)
    bos = model.tokenizer.bos_id
    ids = np.random.default_rng(0).integers(3, 61, 23).tolist()
    found = score_document(model, ids, max_length=8, stride=5)
    expected = []
    for begin, start, stop in [(0, 0, 8), (5, 8, 13), (10, 13, 18), (15, 18, 23)]:
        window = [bos, *ids[begin:stop]]
        logs = decode_by_hand(model, window)
        expected += [logs[i - begin, ids[i]] for i in range(start, stop)]
    np.testing.assert_allclose(found.token_log_probs, expected, atol=2e-5)
    assert found.token_ids.tolist() == ids and found.num_windows == 4
    assert found.log_prob == pytest.approx(math.fsum(expected), abs=1e-3)


def test_pitfall_3_bos_in_every_window(random_model: Any) -> None:
    # Three equal blocks in disjoint windows: equal numbers, only if all windows begin alike.
    model = random_model(seed=8)
    block = [7, 12, 30, 4]
    found = score_document(model, block * 3, max_length=4).token_log_probs.reshape(3, 4)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    bare = score_document(model, block * 3, max_length=4, bos=False)
    assert bare.num_tokens == 11 and bare.token_ids.tolist() == (block * 3)[1:]
    assert abs(float(bare.token_log_probs[4]) - float(found[1, 1])) > 1e-3


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
    found = list(score_documents(tiny_model, iter(texts), max_length=32, stride=20))
    for text, one in zip(texts, found, strict=True):
        alone = score_document(tiny_model, text, max_length=32, stride=20)
        np.testing.assert_allclose(one.token_log_probs, alone.token_log_probs, atol=1e-5)
        assert (one.num_bytes, one.num_windows) == (len(text), alone.num_windows)


def test_pitfall_4_bos_is_not_doubled(tiny_model: Any) -> None:
    bos = tiny_model.tokenizer.token_text(tiny_model.tokenizer.bos_id)
    plain, written = (score_document(tiny_model, text) for text in ("a b", bos + "a b"))
    np.testing.assert_array_equal(plain.token_log_probs, written.token_log_probs)
    assert plain.num_bytes == written.num_bytes


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        ("", {}, DataError, "document 2: there is no token"),
        ([5], {"bos": False}, DataError, "document 2: there is no token"),
        ("a", {"stride": 0}, UsageError, "stride is 0"),
        ("a", {"max_length": 9, "stride": 10}, UsageError, "stride is 10"),
        ("a", {"max_length": 257}, UsageError, "max_length is 257"),
        ("a", {"max_length": 0}, UsageError, "max_length is 0"),
        ([400], {}, PromptError, "document 2: 400 is not one"),
    ],
)
def test_errors(
    tiny_model: Any, text: Any, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(score_documents(tiny_model, ["a b", text], **options))
