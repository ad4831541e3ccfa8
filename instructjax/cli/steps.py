"""A progress bar for work in several steps, shown where somebody looks and it takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PATIENCE = 1.0


@contextmanager
def show_step(name: str) -> Iterator[Callable[[float], None]]:
    """Gives a function that takes the share of a step that is done, 0 to 1; more means unknown.

    >>> with show_step("reading") as tell:
    ...     tell(0.5)
    """
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda share: None
        return
    columns = (TextColumn(name), BarColumn(bar_width=20), TaskProgressColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=False
    ) as bar:
        task = bar.add_task(name, total=1.0, visible=False)
        start = time.monotonic()

        def tell(share: float) -> None:
            late = time.monotonic() - start > PATIENCE
            total = 1.0 if share <= 1 else None
            bar.update(task, completed=min(share, 1.0), total=total, visible=late)

        yield tell
