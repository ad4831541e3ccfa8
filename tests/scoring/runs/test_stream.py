"""The stream: the same bits wherever it begins, rows in order, threads that end, honest clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data import Example
from instructjax.errors import PromptError
from instructjax.prompts import PromptEncoder, Request
from instructjax.scoring import Headway, Work, score_requests, score_rows
from instructjax.scoring.engine import ScoredRequest
from instructjax.scoring.rows import ScoredRow, encode_row
from instructjax.scoring.runs import chunks, stream
from instructjax.scoring.runs.chunks import make_chunks
from instructjax.scoring.runs.stream import score_chunks

CONTEXTS = ("cz", "z")
EXAMPLES = [
    Example(
        instruction=f"Say {n % 4} in as many words as it takes.",
        input="7 " * (n * 5 % 23),
        output=["y", f"no {n}"] if n % 3 else f"y {n}",
    )
    for n in range(40)
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 8)


@pytest.fixture(scope="module")
def by_chunk(tiny_model: Any) -> dict[int, list[ScoredRow]]:
    """The rows of an undisturbed run by the first row of their chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_ROWS", 8)
        return run_from(tiny_model, {})


def run_from(model: Any, done: dict[int, int]) -> dict[int, list[ScoredRow]]:
    encoder = PromptEncoder(model.tokenizer)

    def encode(example: Example, row: int) -> list[Request]:
        return encode_row(model, encoder, example, row, CONTEXTS)

    made = score_chunks(model, make_chunks(EXAMPLES, encode, done=done))
    return {chunk.first: chunk.rows for chunk in made}


def numbers(row: ScoredRow) -> tuple[Any, ...]:
    scored = row.scored
    bits = [scored.token_log_probs.tobytes(), scored.entropy.tobytes(), scored.rank.tobytes()]
    return (row.id, row.candidate, row.context, *bits)


@settings(max_examples=12)
@given(st.sets(st.sampled_from([0, 8, 16, 24, 32])))
def test_law_8_a_chunk_has_the_same_bits_wherever_a_run_began(
    tiny_model: Any, by_chunk: dict[int, list[ScoredRow]], kept: set[int]
) -> None:
    rest = run_from(tiny_model, {first: first + 8 for first in kept})
    assert rest.keys() == by_chunk.keys() - kept
    for first, rows in rest.items():
        assert [numbers(row) for row in rows] == [numbers(row) for row in by_chunk[first]]


def test_law_2_chunks_do_not_change_a_number(
    tiny_model: Any,
    by_chunk: dict[int, list[ScoredRow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 40)
    encoder = PromptEncoder(tiny_model.tokenizer)
    rows = list(score_rows(tiny_model, EXAMPLES, encoder=encoder, contexts=CONTEXTS))
    twins = [row for first in sorted(by_chunk) for row in by_chunk[first]]
    assert len(rows) == len(twins) == sum(len(e.outputs) for e in EXAMPLES) * len(CONTEXTS)
    for row, twin in zip(rows, twins, strict=True):
        assert numbers(row)[:3] == numbers(twin)[:3]
        np.testing.assert_allclose(
            row.token_log_probs, twin.token_log_probs, atol=1e-5, rtol=0, err_msg=row.id
        )


def test_what_is_counted(tiny_model: Any) -> None:
    headway, work, seen = Headway(), Work(), []
    encoder = PromptEncoder(tiny_model.tokenizer)
    bad = Example(instruction="a", output="")
    rows = score_rows(
        tiny_model,
        [*EXAMPLES[:9], bad],
        encoder=encoder,
        on_error=lambda example, error: seen.append((example, type(error))),
        headway=headway,
        work=work,
    )
    requests = [row.scored.request for row in rows]
    assert seen == [(bad, PromptError)]
    assert headway.rows == 10
    assert 0 < headway.waited < headway.seconds and 0 < headway.waiting_share < 1
    assert work.requested == sum(len(request.ids) - 1 for request in requests)


def test_an_early_end_ends_the_thread(tiny_model: Any) -> None:
    encoder = PromptEncoder(tiny_model.tokenizer)
    read = []

    def examples() -> Iterator[Example]:
        for n in range(10_000):
            read.append(n)
            yield EXAMPLES[n % 40]

    rows = score_rows(tiny_model, examples(), encoder=encoder)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
    # The chunk that is scored, one that waits, and one that is being made.
    assert len(read) <= 4 * 8


def sleepy(seconds: float) -> Any:
    """Scores nothing, slowly."""

    def score(model: Any, requests: list[Request], **options: Any) -> Iterator[ScoredRequest]:
        time.sleep(seconds)
        for request in requests:
            zeros = np.zeros(request.num_tokens, np.float32)
            yield ScoredRequest(
                request=request,
                token_log_probs=zeros,
                greedy=zeros > 0,
                entropy=zeros,
                rank=zeros.astype(np.int32),
                top_ids=zeros[:, None].astype(np.int32),
                top_log_probs=zeros[:, None],
            )

    return score


@pytest.mark.parametrize("slow", ["reader", "model"])
def test_the_clock_tells_who_waits(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)
    monkeypatch.setattr(stream, "score_requests", sleepy(0.1 if slow == "model" else 0))

    def encode(example: Example, row: int) -> list[Request]:
        time.sleep(0.1 if slow == "reader" else 0)
        return [Request(ids=np.arange(4, dtype=np.int32), spans=((2, 4),), num_bytes=1)]

    headway = Headway()
    list(score_chunks(tiny_model, make_chunks(EXAMPLES[:6], encode), headway=headway))
    assert (headway.waiting_share > 0.6) == (slow == "reader")


def test_score_requests_is_what_scores(tiny_model: Any, by_chunk: Any) -> None:
    # The rows' own numbers, request by request, without chunks or threads.
    requests = [row.scored.request for row in by_chunk[0]]
    twins = list(score_requests(tiny_model, requests))
    assert [t.token_log_probs.tobytes() for t in twins] == [
        row.scored.token_log_probs.tobytes() for row in by_chunk[0]
    ]


def test_law_5_what_a_run_that_goes_on_scores_is_y_and_nothing_else(tiny_model: Any) -> None:
    decode = tiny_model.tokenizer.decode
    for rows in run_from(tiny_model, {0: 8, 16: 24}).values():
        for row in rows:
            request = row.scored.request
            example = EXAMPLES[request.row]
            # the last token scored is the end of turn
            assert decode(request.target_ids[:-1]) == example.outputs[request.candidate]
            assert len(request.target_ids) == row.num_tokens == len(row.scored.token_log_probs)
            assert request.spans[0][1] == len(request.ids)


def test_law_4_token_log_probs_sum_to_log_prob_in_a_stream(tiny_model: Any) -> None:
    encoder = PromptEncoder(tiny_model.tokenizer)
    for row in score_rows(tiny_model, EXAMPLES[:12], encoder=encoder, contexts=CONTEXTS):
        assert row.log_prob == sum(map(float, row.scored.token_log_probs))
