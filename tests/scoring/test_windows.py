"""Windows over a document: every token once, and those of lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows

from instructjax.errors import DataError, PromptError
from instructjax.scoring.windows import cut_document, find_windows

lengths = st.integers(1, 40)


@given(st.integers(0, 200), lengths, st.data(), st.sampled_from(["every", "first", "never"]))
def test_every_token_is_scored_once(n: int, length: int, data: Any, bos: Any) -> None:
    stride = data.draw(st.integers(1, length))
    windows = find_windows(n, max_length=length, stride=stride, bos=bos)
    scored = [i for window in windows for i in range(window.start, window.stop)]
    assert scored == list(range(1 if bos == "never" else 0, n))
    for k, window in enumerate(windows):
        assert window.bos == (bos == "every" or (bos == "first" and k == 0))
        assert 0 <= window.begin <= window.start < window.stop
        # What the model computes: BOS and all tokens but the last.
        assert window.bos + window.stop - window.begin - 1 <= length
        assert window.bos + window.start - window.begin >= 1  # something to go by
        if k:
            assert window.stop - window.start <= stride
            assert window.bos + window.start - window.begin >= length - stride + 1


@given(st.integers(0, 200), lengths, st.data(), st.sampled_from(["every", "first"]))
def test_windows_of_lm_evaluation_harness(n: int, length: int, data: Any, bos: Any) -> None:
    """Its own with `bos="first"`; with "every", BOS stands where their oldest token is."""
    stride = data.draw(st.integers(1, length))
    tokens = list(range(n))
    theirs = get_rolling_token_windows(tokens, -1, length, length - stride + 1)
    expected = [
        ([-1, *seen[1:]] if bos == "every" else seen, predicted) for seen, predicted in theirs
    ]
    found = [
        (
            [-1] * window.bos + tokens[window.begin : window.stop - 1],
            tokens[window.start : window.stop],
        )
        for window in find_windows(n, max_length=length, stride=stride, bos=bos)
    ]
    # They give with the first window what it predicts, later also what it only sees.
    assert found == expected


@pytest.mark.parametrize(
    ("bos", "expected"),
    [
        ("every", [([1, 5, 6, 7], (1, 4)), ([1, 7, 8, 9], (2, 4)), ([1, 8, 9, 10], (3, 4))]),
        ("first", [([1, 5, 6, 7], (1, 4)), ([6, 7, 8, 9], (2, 4)), ([7, 8, 9, 10], (3, 4))]),
        ("never", [([5, 6, 7, 8], (1, 4)), ([7, 8, 9, 10], (2, 4))]),
    ],
)
def test_requests_by_hand(random_model: Any, bos: Any, expected: Any) -> None:
    model = random_model()
    assert model.tokenizer.bos_id == 1
    document = [5, 6, 7, 8, 9, 10]
    requests = list(cut_document(model, document, max_length=3, stride=2, bos=bos, row=4))
    assert [(request.ids.tolist(), request.spans[0]) for request in requests] == expected
    assert {request.row for request in requests} == {4}


def test_bytes_are_those_of_the_text(tiny_model: Any) -> None:
    text = "The sea, é and 日本. " * 9
    size = len(text.encode())
    requests = list(cut_document(tiny_model, text, max_length=20, stride=7))
    assert len(requests) > 5 and sum(request.num_bytes for request in requests) == size
    for request in requests:
        piece = tiny_model.tokenizer.join_bytes(request.target_ids)
        assert request.num_bytes == len(piece) and piece in text.encode()
    ids = tiny_model.tokenizer.encode(text).tolist()
    for same in (ids, np.asarray(ids)):
        found = cut_document(tiny_model, same, max_length=20, stride=7)
        assert [r.num_bytes for r in found] == [r.num_bytes for r in requests]
    first = len(tiny_model.tokenizer.token_bytes(ids[0]))
    unled = cut_document(tiny_model, text, max_length=20, bos="never")
    assert sum(request.num_bytes for request in unled) == size - first


def test_pitfall_4_bos_is_not_doubled(tiny_model: Any) -> None:
    bos = tiny_model.tokenizer.token_text(tiny_model.tokenizer.bos_id)
    plain, written = (
        next(cut_document(tiny_model, text, max_length=9)) for text in ("a b", bos + "a b")
    )
    assert plain.ids.tolist() == written.ids.tolist()
    assert plain.spans == written.spans and plain.num_bytes == written.num_bytes == 3
    unled = next(cut_document(tiny_model, bos + "a b", max_length=9, bos="never"))
    assert unled.ids.tolist() == plain.ids.tolist() and unled.spans == plain.spans


@pytest.mark.parametrize(
    ("document", "bos", "error", "words"),
    [
        ("", "every", DataError, "page 3: there is no token to score; leave it out"),
        ([], "first", DataError, "page 3: there is no token"),
        ([5], "never", DataError, "page 3: there is no token"),
        ([1], "every", DataError, "page 3: there is no token"),
        ([400], "every", PromptError, "page 3: 400 is not one of the model's 352 ids"),
        ([-1], "every", PromptError, "page 3: -1 is not one"),
        ([True], "every", PromptError, "page 3: a document is no list of whole numbers"),
        ("\ud800", "every", PromptError, "page 3: the text holds a lone surrogate"),
    ],
)
def test_errors(
    tiny_model: Any, document: Any, bos: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(cut_document(tiny_model, document, max_length=4, bos=bos, name="page 3"))


def test_neither_bos_nor_eos(tiny_model: Any) -> None:
    tokenizer = dataclasses.replace(tiny_model.tokenizer, bos_id=None, eos_ids=())
    bare = dataclasses.replace(tiny_model, tokenizer=tokenizer)
    with pytest.raises(PromptError, match="neither BOS nor EOS.*bos='never'"):
        list(cut_document(bare, "a b", max_length=4))
    assert len(list(cut_document(bare, "a b", max_length=4, bos="never"))) == 1
    ended = dataclasses.replace(tokenizer, eos_ids=(2,))
    ending = dataclasses.replace(tiny_model, tokenizer=ended)
    (request,) = cut_document(ending, "a b", max_length=4)
    assert request.ids.tolist() == [2, *ended.encode("a b").tolist()]
