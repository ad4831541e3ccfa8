"""Rows encoded by several processes: each a share, all the same requests, and the same errors."""

from __future__ import annotations

import threading
from typing import Any

import jax
import numpy as np
import pytest

from instructjax.errors import DataError
from instructjax.prompts import Request
from instructjax.scoring.runs import shared_encoding
from instructjax.scoring.runs.shared_encoding import encode_rows
from instructjax.sharding import processes


def make(row: int, place: int) -> list[Request]:
    ids = np.array([row, place, 7, 9], np.int32)
    return [
        Request(
            ids=ids[: 4 - k],
            spans=((1, 2), (2, 4 - k)),
            num_bytes=5,
            row=place,
            candidate=k,
            context="c",
            flags=("spans_join",),
        )
        for k in range(2)
    ]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a function in threads that take each other for processes."""
    here = threading.local()
    given: dict[str, dict[int, bytes]] = {}
    there = threading.Condition()

    def exchange(name: str, value: bytes) -> list[bytes]:
        with there:
            given.setdefault(name.partition(", ")[2], {})[here.index] = value
            there.notify_all()
            shares = given[name.partition(", ")[2]]
            assert there.wait_for(lambda: len(shares) == here.count, timeout=20)
            return [shares[i] for i in range(here.count)]

    monkeypatch.setattr(processes, "several", lambda: hasattr(here, "index"))
    monkeypatch.setattr(processes, "exchange", exchange)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    monkeypatch.setattr(jax, "process_count", lambda: here.count)
    monkeypatch.setattr(shared_encoding, "BLOCK_ROWS", 3)

    def run(count: int, work: Any) -> list[Any]:
        results: list[Any] = [None] * count

        def one(index: int) -> None:
            here.index, here.count = index, count
            try:
                results[index] = work()
            except DataError as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


def list_all(rows: Any) -> list[Any]:
    names = Request.__slots__
    return [
        (row, [[np.asarray(getattr(r, n)).tolist() for n in names] for r in made])
        if isinstance(made, list)
        else (row, made)
        for row, made in rows
    ]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("done", [{}, {0: 4, 4: 5, 9: 13}])
def test_each_makes_a_share_and_gets_all(together: Any, count: int, done: dict[int, int]) -> None:
    rows = list(range(100, 123))
    expected = list_all(encode_rows(rows, make, done=done))
    assert [made is None for _, made in expected] == [
        any(start <= i < stop for start, stop in done.items()) for i in range(23)
    ]
    asked: list[int] = []

    def encode(row: int, place: int) -> list[Request]:
        asked.append(place)
        return make(row, place)

    results = together(count, lambda: list_all(encode_rows(rows, encode, done=done, shared=True)))
    assert all(found == expected for found in results)
    wanted = [i for i, (_, made) in enumerate(expected) if made is not None]
    assert sorted(asked) == wanted  # each row by one of them


def test_what_is_refused_is_refused_by_all(together: Any) -> None:
    def encode(row: int, place: int) -> Any:
        if place == 9:
            raise DataError("no template", row=f"row {place}")
        return f"refused {row}" if place == 4 else make(row, place)

    seen: list[list[int]] = []

    def work() -> None:
        mine: list[int] = []
        seen.append(mine)
        for row, made in encode_rows(range(20), encode, shared=True):
            assert (made == "refused 4") == (row == 4)
            mine.append(row)

    errors = together(3, work)
    assert [str(error) for error in errors] == ["row 9: no template"] * 3
    assert seen == [list(range(9))] * 3


def test_no_rows(together: Any) -> None:
    assert together(2, lambda: list(encode_rows([], make, shared=True))) == [[], []]


def test_rows_of_ones_own_are_not_shared(together: Any) -> None:
    own = iter([[1, 2, 3, 4], [5]])
    found = together(2, lambda: list_all(encode_rows(next(own), make)))
    assert sorted(len(rows) for rows in found) == [1, 4]
    assert {row for rows in found for row, _ in rows} == {1, 2, 3, 4, 5}
