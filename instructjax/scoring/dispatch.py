"""Packed rows in, what a program computes of each out, in the same order."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from instructjax.batching.batch import Batch
from instructjax.batching.packing import PackedRow
from instructjax.errors import InstructJaxError, ModelError

# Rows computed at a time, each in a thread of its own: programs started by one thread run one after
# the other, and on a CPU one program alone leaves cores idle in its sequential parts.
STREAMS = 2

_dispatch = threading.Lock()

T = TypeVar("T")


def compute_rows(
    rows: Iterable[tuple[T, PackedRow]], compute: Callable[[Batch], Any]
) -> Generator[tuple[T, PackedRow, Any], None, None]:
    """Each row with what `compute` gives for its batch, on the host.

    The device works on rows while the host packs the next and reads the last.

    Args:
      rows: what the caller knows a row by, and the row; taken a few ahead.
      compute: a jitted function of a batch.

    Raises:
      ModelError: a row does not fit into the device's memory.
      InstructJaxError: the device failed.
    """
    device: Any = jax.config.jax_default_device  # type: ignore  # a thread begins without it

    def run(row: PackedRow) -> Any:
        try:
            # One dispatches at a time, or both threads compile the same program.
            with _dispatch, jax.default_device(device):
                results = compute(row.batch)
            return jax.device_get(results)
        except jax.errors.JaxRuntimeError as error:
            raise _explain(error, row) from error

    waiting: deque[tuple[T, PackedRow, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="instructjax-row")
    try:
        for name, row in rows:
            waiting.append((name, row, pool.submit(run, row)))
            if len(waiting) > STREAMS:
                name, row, results = waiting.popleft()
                yield name, row, results.result()
        while waiting:
            name, row, results = waiting.popleft()
            yield name, row, results.result()
    finally:
        if not sys.is_finalizing():
            pool.shutdown(cancel_futures=True)


def _explain(error: Exception, row: PackedRow) -> InstructJaxError:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return InstructJaxError(f"the device failed: {text}")
    return ModelError(
        f"a row of {row.batch.tokens.shape[1]:,} tokens does not fit into memory",
        remedy="set a smaller max_length with truncation, or load the model in bfloat16",
    )
