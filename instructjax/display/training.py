"""A progress bar for training; where nobody looks, a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

LOG_EVERY = 60.0


@runtime_checkable
class Step(Protocol):
    """What is shown of a step; units as in `StepReport`."""

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def num_response_tokens(self) -> int: ...
    @property
    def held_out(self) -> object | None: ...


class TrainingProgress:
    """Loss, response tokens a second, learning rate, gradient norm and time left.

    Args:
      show: always or never; by default on a terminal or in a notebook. Where it is not shown,
        standard error gets a line a minute, and one for each look at the held-out data.
    """

    def __init__(self, *, show: bool | None = None) -> None:
        self._console = Console(stderr=True)
        live = self._console.is_terminal or self._console.is_jupyter
        self._shown = live if show is None else show
        self._bar: Progress | None = None
        self._waiting = Progress(
            SpinnerColumn(),
            TextColumn("reading model and data, then compiling the first step"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._waiting.add_task("", total=None)
        self._start = self._logged = time.monotonic()
        self._tokens = 0
        self._held_out = ""

    def update(self, report: Step) -> None:
        """Tells of a step."""
        self._tokens += report.num_response_tokens
        looked = report.held_out is not None
        if looked:
            total = report.held_out.total().per_token  # type: ignore[union-attr]
            self._held_out = f"  held-out {total:.4f}"
        if report.step == 0:
            # The clock starts with the first step: what comes before it says nothing of speed.
            self._start = time.monotonic()
            if not self._shown:
                self._print(f"step 0 of {report.steps:,}:{self._held_out}")
            return
        speed = self._tokens / max(time.monotonic() - self._start, 1e-3)
        text = (
            f"loss {report.loss:.4f}{self._held_out}  {speed:,.0f} response tokens/s  "
            f"rate {report.learning_rate:.2e}  gradient {report.grad_norm:.3f}"
        )
        if self._shown:
            bar = self._bar = self._bar or self._start_bar(report)
            bar.update(bar.task_ids[0], completed=report.step, text=text)
        elif looked or time.monotonic() - self._logged > LOG_EVERY:
            self._print(f"step {report.step:,} of {report.steps:,}: {text}")

    def _print(self, line: str) -> None:
        self._logged = time.monotonic()
        print(line, file=sys.stderr, flush=True)

    def _start_bar(self, report: Step) -> Progress:
        self._waiting.stop()
        width = len(f"{report.steps}/{report.steps}")
        room = max(self._console.width - width - 24, 12)
        bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=width)),
            BarColumn(bar_width=8),
            # What a narrow terminal has no room for is cut off here.
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, max_width=room)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=self._console,
        )
        bar.add_task("", total=report.steps, completed=report.step - 1, text="")
        bar.start()
        return bar

    def __enter__(self) -> TrainingProgress:
        if self._shown:
            self._waiting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting.stop()
        if self._bar is not None:
            self._bar.stop()
