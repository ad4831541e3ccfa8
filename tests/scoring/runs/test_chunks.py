"""Chunks: every row once, ends told from the rows alone, nothing encoded that is done."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import Example, Reject
from instructjax.errors import DataError
from instructjax.prompts import Request
from instructjax.scoring.runs import chunks
from instructjax.scoring.runs.chunks import Failure, make_chunks

REJECT = Reject(file="a", row="line 1", reason="no response")


class Encoder:
    """Each example is as many tokens long as its instruction; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, row: Any, place: int) -> list[Request] | Failure | Reject:
        self.asked.append(place)
        if isinstance(row, Reject):
            return row
        if not row.instruction:
            return Failure(example=row, error=DataError("no"))
        n = len(row.instruction) + 1
        # Rows that have nothing in common with their neighbours.
        ids = np.arange(n, dtype=np.int32) + 1000 * place
        return [Request(ids=ids, spans=((n - 1, n),), num_bytes=1)]


def make_rows(lengths: list[int]) -> list[Any]:
    return [REJECT if n < 0 else Example(instruction="x" * n, output="y") for n in lengths]


@pytest.fixture(autouse=True, scope="module")
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_ROWS", 4)
        patch.setattr(chunks, "CHUNK_TOKENS", 20)
        yield


def test_a_chunk_ends_with_its_rows_or_its_tokens() -> None:
    found = list(make_chunks(make_rows([1, 1, 1, 1, 19, 2, 30, -1, 0, 5]), Encoder()))
    assert [(c.first, c.stop) for c in found] == [(0, 4), (4, 6), (6, 7), (7, 10)]
    assert [row.row for row in found[3].rows] == [9]
    assert [type(f).__name__ for f in found[3].failures] == ["Reject", "Failure"]


def test_chunks_of_larger_models_hold_fewer_tokens(
    monkeypatch: pytest.MonkeyPatch, random_model: Any
) -> None:
    model = random_model()
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    monkeypatch.setattr(chunks, "FEWEST_TOKENS", 3)
    for share, expected in ((1, 20), (2, 10), (3, 6), (100, 3)):
        monkeypatch.setattr(chunks, "CHUNK_PARAMS", size // share)
        assert chunks.chunk_tokens(model) == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chunks.chunk_tokens(model) == 20
    found = list(make_chunks(make_rows([1] * 9), Encoder(), tokens=3))
    plain = list(make_chunks(make_rows([1] * 9), Encoder()))
    assert [c.stop for c in plain] == [4, 8, 9] and [c.stop for c in found] == [3, 6, 9]


@pytest.mark.parametrize(("held", "stops"), [(1000, [4]), (25, [3, 4]), (24, [2, 4])])
def test_tokens_in_common_count_once(
    monkeypatch: pytest.MonkeyPatch, held: int, stops: list[int]
) -> None:
    monkeypatch.setattr(chunks, "HELD_TOKENS", held)
    prompt = np.arange(8, dtype=np.int32)

    def encode(row: Any, place: int) -> list[Request]:
        """The prompt and a token of the row's, and the token without the prompt."""
        own = np.array([100 + place, 0], np.int32)
        whole = np.concatenate([prompt, own])
        return [
            Request(ids=ids, spans=((len(ids) - 1, len(ids)),), num_bytes=1) for ids in (whole, own)
        ]

    # 9 + 1 new tokens, then 1 + 1 a row; 12 a row to hold.
    found = list(make_chunks(make_rows([1] * 4), encode))
    assert [chunk.stop for chunk in found] == stops


def shuffled(instructions: int, rows: int) -> Any:
    """An encoder of rows of one of several instructions of 100 tokens, and 20 of their own."""
    order = np.random.default_rng(0).integers(0, instructions, rows)

    def encode(row: Any, place: int) -> list[Request]:
        prompt, own = np.arange(100) + 1000 * order[place], np.arange(20) + 10**8 + 100 * place
        ids = np.concatenate([prompt, own, [0]]).astype(np.int32)
        return [Request(ids=ids, spans=((120, 121),), num_bytes=1)]

    return encode


def test_instructions_in_random_order_are_seldom_computed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 10**6)
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 1000)
    found = list(make_chunks(make_rows([1] * 600), shuffled(5, 600)))
    total = sum(
        len({tuple(r.ids[:n]) for row in c.rows for r in row.requests for n in range(1, 121)})
        for c in found
    )
    assert len(found) > 1
    assert total <= 1.15 * (5 * 100 + 600 * 20)
    # Where nothing is shared there is nothing to wait for.
    apart = list(make_chunks(make_rows([1] * 54), shuffled(10**6, 54)))
    assert [c.stop - c.first for c in apart] == [9] * 6


def test_what_is_kept_of_each_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 1000)
    monkeypatch.setattr(chunks, "HELD_TOKENS", 20)
    # Three ids a row, of which one is scored, for which three ids and three numbers are kept.
    found = list(make_chunks(make_rows([2] * 4), Encoder(), top_k=3))
    assert [c.stop - c.first for c in found] == [3, 1]


def test_requests_of_a_chunk_are_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "WINDOW", 6)

    def encode(row: Any, place: int) -> list[Request]:
        ids = np.array([place, 0], np.int32)
        return [Request(ids=ids, spans=((1, 2),), num_bytes=1)] * 4

    assert [c.stop for c in make_chunks(make_rows([1] * 4), encode)] == [2, 4]


@given(st.lists(st.integers(-1, 25), max_size=30), st.data())
def test_parts_left_out_change_nothing_of_the_others(lengths: list[int], data: Any) -> None:
    rows = make_rows(lengths)
    whole = list(make_chunks(rows, Encoder()))
    assert [c.first for c in whole] == [0, *(c.stop for c in whole)][: len(whole)]
    assert sum(c.stop - c.first for c in whole) == len(rows)
    kept = data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)))
    done = {c.first: c.stop for c, keep in zip(whole, kept, strict=True) if keep}
    encoder = Encoder()
    rest = list(make_chunks(iter(rows), encoder, done=done))
    assert [(c.first, c.stop) for c in rest] == [
        (c.first, c.stop) for c in whole if c.first not in done
    ]
    for chunk in rest:
        twin = next(c for c in whole if c.first == chunk.first)
        assert [r.row for r in chunk.rows] == [r.row for r in twin.rows]
        assert [r.example for r in chunk.rows] == [r.example for r in twin.rows]
    # What is done is not encoded again.
    assert not set(encoder.asked) & {n for first, stop in done.items() for n in range(first, stop)}


def test_an_error_of_the_encoder_ends_the_stream() -> None:
    def refuse(row: Any, place: int) -> list[Request]:
        raise DataError("no", row=f"row {place + 1}")

    with pytest.raises(DataError, match="row 1"):
        next(make_chunks(make_rows([3]), refuse))
