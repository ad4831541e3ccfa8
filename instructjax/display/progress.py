"""A progress bar over rows that shows up only where somebody looks and it is worth it."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2.0
LOG_EVERY = 60.0


class ScoringProgress:
    """Rows done, tokens a second and time left, on standard error, after `PATIENCE` seconds.

    The bar comes then even if nothing was told yet, as while programs are compiled. Where standard
    error is a file, a line a minute takes the place of the bar.

    Args:
      total: rows in all, if it is known.
      show: always or never; by default on a terminal or in a notebook.
      log: write plain lines where there is no terminal.
      verb: what is done with the rows.
    """

    def __init__(
        self,
        total: int | None,
        *,
        show: bool | None = None,
        log: bool = False,
        verb: str = "scoring",
    ) -> None:
        self._console = Console(stderr=True)
        live = self._console.is_terminal or self._console.is_jupyter
        self._shown = live if show is None else show
        self._log = log and not self._shown
        self._total, self._verb = total, verb
        self._bar: Progress | None = None
        self._start = self._logged = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def update(self, rows: int, tokens: int) -> None:
        """Tells how far the work is.

        Args:
          rows: done so far.
          tokens: positions computed so far.
        """
        seconds = self.seconds
        speed = f"{tokens / max(seconds, 1e-3):,.0f} tokens/s"
        # A total that was estimated too low is worse than none.
        total = self._total if self._total is None or rows <= self._total else None
        if self._shown and seconds > PATIENCE:
            bar = self._show()
            bar.update(bar.task_ids[0], completed=rows, total=total, speed=speed)
        elif self._log and time.monotonic() - self._logged > LOG_EVERY:
            self._logged = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            print(f"{self._verb}: {rows:,}{of} rows, {speed}", file=sys.stderr, flush=True)

    def _show(self) -> Progress:
        with self._lock:
            bar = self._bar
            if bar is None:
                bar = self._bar = self._make_bar()
                if not self._closed:
                    bar.start()
            return bar

    def _make_bar(self) -> Progress:
        bar = Progress(
            TextColumn(self._verb),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        bar.add_task("", total=self._total, speed="reading and compiling")
        return bar

    def __enter__(self) -> ScoringProgress:
        if self._shown:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()
