"""Work done ahead: order, errors, bounds, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from instructjax.scoring.runs.ahead import run_ahead


def count_threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_order_is_kept() -> None:
    def slow() -> Iterator[int]:
        for n in range(50):
            time.sleep(0.001 * (n % 3))
            yield n

    assert list(run_ahead(slow(), depth=3)) == list(range(50))
    assert list(run_ahead([])) == []
    assert count_threads() == 0


def test_an_error_comes_after_the_items_before_it() -> None:
    error = ValueError("row 3")

    def broken() -> Iterator[int]:
        yield from range(3)
        raise error

    ahead, seen = run_ahead(broken()), []
    with pytest.raises(ValueError) as caught:
        for item in ahead:
            seen.append(item)
    assert seen == [0, 1, 2] and caught.value is error
    assert count_threads() == 0


def test_the_thread_runs_ahead_by_a_bounded_number_of_items() -> None:
    made = []

    def items() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    ahead = run_ahead(items(), depth=2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    # One was taken, two wait, one is being handed over, and no more.
    assert len(made) == 4
    ahead.close()
    assert count_threads() == 0


def test_host_and_consumer_work_at_the_same_time() -> None:
    # Each item is made while the one before it is worked on, or nobody comes to the meeting.
    meeting = threading.Barrier(2, timeout=10)

    def items() -> Iterator[int]:
        for n in range(5):
            if n:
                meeting.wait()
            yield n

    ahead = run_ahead(items())
    for n in ahead:
        if n < 4:
            meeting.wait()


def test_closing_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    ahead = run_ahead(items())
    next(ahead)
    ahead.close()
    assert closed.wait(5)
