"""Packed rows in, what a program computes of each out, in the same order."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np

from instructjax.batching.batch import Batch
from instructjax.batching.packing import PackedRow
from instructjax.errors import InstructJaxError, ModelError
from instructjax.sharding.processes import tick

# Rows computed at a time, each in a thread of its own: programs started by one thread run one after
# the other, and on a CPU one program alone leaves cores idle in its sequential parts.
STREAMS = 2

_dispatch = threading.Lock()

T = TypeVar("T")


def compute_rows(
    rows: Iterable[tuple[T, PackedRow]],
    compute: Callable[[Batch], Any],
    *,
    together: int = 1,
    split: Callable[[T, PackedRow], list[PackedRow]] | None = None,
) -> Generator[tuple[T, PackedRow, Any], None, None]:
    """Each row with what `compute` gives for its batch, on the host.

    The device works on rows while the host packs the next and reads the last.

    Args:
      rows: what the caller knows a row by, and the row; taken a few ahead.
      compute: a jitted function of a batch; never called by two threads at once.
      together: rows a batch, so that each device of a mesh has one. They are of one shape and the
        caller knows them by the same; where there are fewer, empty rows make up for them.
      split: shorter rows of the same requests, for a row that does not fit into memory; without
        it, or where it gives none, that is an error.

    Raises:
      ModelError: a row does not fit into the device's memory.
      InstructJaxError: the device failed.
    """
    device: Any = jax.config.jax_default_device  # type: ignore  # a thread begins without it

    def run(group: list[PackedRow]) -> Any:
        batch = group[0].batch if together == 1 else _stack(group, together)
        try:
            # One dispatches at a time, or both threads compile the same program.
            with _dispatch, jax.default_device(device):
                results = compute(batch)
            return jax.device_get(results)
        except jax.errors.JaxRuntimeError as error:
            raise _explain(error, group[0]) from error

    def take() -> Iterator[tuple[T, PackedRow, Any]]:
        name, group, future = waiting.popleft()
        yield from finish(name, group, future.result)

    def finish(
        name: T, group: list[PackedRow], result: Callable[[], Any]
    ) -> Iterator[tuple[T, PackedRow, Any]]:
        try:
            results = result()
        except ModelError:
            parts = [split(name, row) if split else [] for row in group]
            if not any(parts):
                raise
            # One that cannot be split may fit beside shorter ones.
            shorter = [
                (name, one) for row, part in zip(group, parts, strict=True) for one in part or [row]
            ]
            for _, again in _group(shorter, together):
                yield from finish(name, again, partial(run, again))
            return
        tick()
        for i, row in enumerate(group):
            yield name, row, jax.tree.map(lambda x, i=i: x[i : i + 1], results)

    # Programs that talk between devices must not overtake each other.
    streams = STREAMS if together == 1 else 1
    waiting: deque[tuple[T, list[PackedRow], Future[Any]]] = deque()
    pool = ThreadPoolExecutor(streams, thread_name_prefix="instructjax-row")
    try:
        for name, group in _group(rows, together):
            waiting.append((name, group, pool.submit(run, group)))
            if len(waiting) > streams:
                yield from take()
        while waiting:
            yield from take()
    finally:
        if not sys.is_finalizing():
            pool.shutdown(cancel_futures=True)


def _group(rows: Iterable[tuple[T, PackedRow]], count: int) -> Iterator[tuple[T, list[PackedRow]]]:
    """Up to `count` rows of one shape and one name; all of a name before the next."""
    for name, members in itertools.groupby(rows, lambda pair: pair[0]):
        begun: dict[tuple[int, int], list[PackedRow]] = {}
        for _, row in members:
            shape = row.batch.tokens.shape[1], row.batch.tile
            group = begun.setdefault(shape, [])
            group.append(row)
            if len(group) == count:
                yield name, begun.pop(shape)
        for group in begun.values():
            yield name, group


def _stack(rows: list[PackedRow], count: int) -> Batch:
    """One batch of numpy arrays; rows that are missing hold nothing."""

    def stack(*parts: Any) -> np.ndarray:
        whole = np.concatenate([np.asarray(part) for part in parts])
        return np.pad(whole, ((0, count - len(whole)), *((0, 0),) * (whole.ndim - 1)))

    return jax.tree.map(stack, *(row.batch for row in rows))


def _explain(error: Exception, row: PackedRow) -> InstructJaxError:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return InstructJaxError(f"the device failed: {text}")
    return ModelError(
        f"a row of {row.batch.tokens.shape[1]:,} tokens does not fit into memory",
        remedy="load the model in bfloat16, split it over more devices (mesh), or cut long prompts "
        "(max_length with truncation)",
    )
