"""Work done ahead in a thread: the host reads and encodes while the device computes."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_POLL = 0.1
_PATIENCE = 5.0


def run_ahead(items: Iterable[T], *, depth: int = 1) -> Generator[T, None, None]:
    """Yields the items of an iterable, in order, while a thread makes the next ones.

    An exception of the iterable is raised here, after the items before it. Closing the generator
    ends the thread at the next item.

    Args:
      items: iterated in another thread.
      depth: finished items that may wait; one more is being made.

    >>> list(run_ahead(n * n for n in range(4)))
    [0, 1, 4, 9]
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def offer(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                return waiting.put((kind, value), timeout=_POLL)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                offer("item", item)
                if stop.is_set():
                    break
            offer("end", None)
        except BaseException as error:
            offer("error", error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        if not sys.is_finalizing():
            # Not for ever: the thread may be waiting for a pipe that nobody writes to.
            thread.join(_PATIENCE)
