"""The progress bar: late, on standard error, and only where somebody looks."""

from __future__ import annotations

import time

import pytest

from instructjax.display import progress
from instructjax.display.progress import ScoringProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_silent_off_a_terminal(capfd: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with ScoringProgress(10) as bar:
        clock[0] += 1000
        bar.update(5, 100)
    assert capfd.readouterr() == ("", "")


def test_a_line_a_minute_in_a_log(capfd: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with ScoringProgress(2000, log=True) as bar:
        for _ in range(13):
            clock[0] += 10
            bar.update(1500, 26000)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "1,500 of 2,000 rows" in err and "371 tokens/s" in err


def test_a_bar_that_comes_late(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScoringProgress(10, show=True) as bar:
        bar.update(1, 100)
        assert bar._bar is None
        monkeypatch.setattr(progress, "PATIENCE", -1.0)
        bar.update(5, 100)
        assert bar._bar is not None
        task = bar._bar.tasks[0]
        assert (task.completed, task.total) == (5, 10)
        bar.update(11, 100)  # more than was estimated
        assert bar._bar.tasks[0].completed == 11
    assert bar._bar.finished or not bar._bar.live.is_started
    assert capfd.readouterr().out == ""


def test_the_bar_comes_before_anything_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ScoringProgress(10, show=True, verb="evaluating") as bar:
        deadline = time.monotonic() + 10
        while bar._bar is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert bar._bar is not None and bar._bar.tasks[0].completed == 0
    assert not bar._bar.live.is_started
    err = capfd.readouterr().err
    assert "evaluating" in err and "0/10" in err


def test_a_bar_that_has_ended_is_not_started_again(capfd: pytest.CaptureFixture[str]) -> None:
    with ScoringProgress(10, show=True) as bar:
        pass
    bar._timer.function()
    assert capfd.readouterr().err == ""


def test_never_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ScoringProgress(10, show=False) as bar:
        bar.update(5, 100)
        assert bar._bar is None
