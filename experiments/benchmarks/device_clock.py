"""How long the device was at work while a block of scoring ran, told by watching its results."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import jax

from instructjax.scoring import engine


class DeviceClock:
    """Wraps the engine's compiled function; a thread waits for each result and notes when it came.

    A row's work begins when it was dispatched or when the row before it was done, whichever is
    later: the device takes them one after the other.

    Attributes:
      busy: seconds of work.
    """

    def __init__(self) -> None:
        self.busy = 0.0
        self._dispatched: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        last = 0.0
        while (item := self._dispatched.get()) is not None:
            start, result = item
            jax.block_until_ready(result)
            now = time.perf_counter()
            self.busy += now - max(start, last)
            last = now

    def __enter__(self) -> DeviceClock:
        self._real = engine._token_scores

        def dispatch(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = self._real(*args, **options)
            self._dispatched.put((start, result))
            return result

        engine._token_scores = dispatch
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        engine._token_scores = self._real
        self._dispatched.put(None)
        self._thread.join()
