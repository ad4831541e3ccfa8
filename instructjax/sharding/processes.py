"""Several processes that compute together: `jax.distributed`, watched.

All processes run the same program in step; `jax.devices()` are those of all of them, and a mesh
spans them. Process 0 writes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from instructjax.errors import InstructJaxError, UsageError, exit_code_of
from instructjax.sharding.relay import relay
from instructjax.sharding.watch import Watch, meet

# The watch listens this far from the port of jax's coordinator: beyond the range of ports that
# jax gives to the jobs of a SLURM cluster, so that no two jobs meet.
_PORT_OFFSET = 4096

# Milliseconds; the watch ends what hangs.
_NO_LIMIT = 1 << 31

# Seconds until a file of one machine is seen by all: network file systems lag behind.
_SEEN_WITHIN = 20.0

_watch: Watch | None = None
_comparisons = count()
_exchanged: list[str] = []  # what this process gave last, and may be asked for


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
    lost_after: float = 30.0,
    stalled_after: float = 1800.0,
    heed_sigterm: bool = False,
) -> None:
    """Begins to work together with other processes; before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0, where the others find it. Also the port
        4096 above it is used (below it, if there is none above).
      num_processes, process_id: how many, and which this is. All three, or none: on a TPU pod,
        SLURM, Kubernetes and Open MPI jax finds them by itself.
      timeout: seconds to wait for the others.
      lost_after: seconds without a sign of life after which a process is lost, and all stop.
      stalled_after: seconds without progress after which a process hangs, and all stop.
      heed_sigterm: SIGTERM is only noted, for `told_to_stop`, and ends all where nothing moves on
        for four times `lost_after`; by default it ends the process.

    Raises:
      UsageError: some of the three are given, or none and there is no cluster to be found.
      InstructJaxError: the others did not come.
    """
    global _watch
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    local: Any = None
    if len(missing) == 3:
        coordinator, num_processes, process_id, local = _detect(timeout)
    elif missing:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given",
            remedy="give all three of --coordinator, --num-processes and --process-id, or, on a "
            "cluster that has them in its environment, --distributed alone",
        )
    assert coordinator is not None and num_processes is not None and process_id is not None
    port = _check(coordinator, num_processes, process_id)
    above = port + _PORT_OFFSET < 1 << 16
    watched = port + _PORT_OFFSET if above else port - _PORT_OFFSET
    watch = meet(
        f"{coordinator.rpartition(':')[0]}:{watched}",
        process_id,
        num_processes,
        timeout=timeout,
        lost_after=lost_after,
        stalled_after=stalled_after,
        note=f", {_PORT_OFFSET} {'above' if above else 'below'} the coordinator's port {port}",
    )
    _watch = watch
    # On CPUs programs that are dispatched ahead run side by side, and their collectives would meet
    # those of another program in another process.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        # Where jax misses the coordinator it aborts the process with a stack trace; the watch
        # comes first.
        jax.distributed.initialize(
            coordinator if process_id == 0 else relay(coordinator),
            num_processes,
            process_id,
            local_device_ids=local,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=int(2 * lost_after) + 60,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        raise InstructJaxError(f"the processes cannot work together: {error}") from error
    if heed_sigterm:
        watch.heed(_is_told_to_stop)
    elif threading.current_thread() is threading.main_thread():
        # Jax has begun to note it in the place of the system, and where there is nobody who heeds
        # it, libtpu, which comes with the devices, answers with a stack trace.
        jax.devices()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _detect(timeout: float) -> tuple[str, int, int, Any]:
    # What jax.distributed.initialize() itself asks; jax has no public name for it.
    from jax._src.clusters import ClusterEnv

    by_hand = "give --coordinator HOST:PORT, --num-processes and --process-id"
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout)
        )
    except OSError as error:  # of its metadata server
        said = str(error).partition("\n")[0][:200]
        raise InstructJaxError(
            f"the cluster does not say who takes part ({said})", remedy=by_hand
        ) from error
    coordinator, num_processes, process_id, local = found
    if coordinator is None or num_processes is None or process_id is None:
        raise UsageError(
            "no cluster was found: neither a TPU pod, SLURM, Kubernetes nor Open MPI",
            remedy=by_hand,
        )
    # By default a device a process on SLURM; jax reads this variable itself.
    local = None if "JAX_LOCAL_DEVICE_IDS" in os.environ else local
    return coordinator, num_processes, process_id, local


def _check(coordinator: str, num_processes: int, process_id: int) -> int:
    """The coordinator's port."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(
            f"--coordinator {coordinator!r} is not HOST:PORT", remedy="such as 10.0.0.1:8476"
        )
    if not 0 <= process_id < num_processes:
        raise UsageError(
            f"--process-id {process_id} is not one of {num_processes} processes",
            remedy=f"give each its own, from 0 to {max(num_processes, 1) - 1}",
        )
    return int(port)


def leads() -> bool:
    """Whether this process is the one that writes: it is alone, or number 0."""
    return not several() or jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def tick() -> None:
    """Notes that the work moves on."""
    if _watch is not None:
        _watch.tick()


def share(value: Any) -> Any:
    """Process 0's value, in every process; all must call this, at the same point.

    Args:
      value: of JSON; that of other processes does not count.

    >>> share({"rows": 3})
    {'rows': 3}
    """
    if not several():
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value if leads() else None).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    return json.loads(np.asarray(sent, np.uint8).tobytes())


def exchange(name: str, value: bytes) -> list[bytes]:
    """What every process gives under a name, in their order; each name serves once.

    It goes by the coordinator, not by devices, so that a thread may do this while they compute.

    >>> exchange("rows", b"mine")
    [b'mine']
    """
    if not several():
        return [value]
    # jax has no public name for the store that its processes share.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    here = jax.process_index()
    client.key_value_set_bytes(f"instructjax/{name}/{here}", value)
    found = [
        value
        if number == here
        else client.blocking_key_value_get_bytes(f"instructjax/{name}/{number}", _NO_LIMIT)
        for number in range(jax.process_count())
    ]
    # Others may still be waiting for this one, but no longer for the one before it: they have
    # given this one since.
    if _exchanged:
        client.key_value_delete(_exchanged.pop())
    _exchanged.append(f"instructjax/{name}/{here}")
    tick()
    return found


def agree(good: bool) -> bool:
    """Whether it is good in every process; all must call this, at the same point."""
    if not several():
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(good))))


def check_alike(described: Mapping[str, str]) -> None:
    """See that all processes are about to do the same; all must call this, at the same point.

    Args:
      described: what there is to do: options, data, weights.

    Raises:
      UsageError: one would do something else than process 0; it is raised in all of them.
    """
    mine = json.dumps(dict(described)).encode()
    first, *others = map(json.loads, exchange(f"described {next(_comparisons)}", mine))
    for number, other in enumerate(others, 1):
        for name in {**first, **other}:
            here, there = other.get(name, "missing"), first.get(name, "missing")
            if here != there:
                raise UsageError(
                    f"processes would do different things: {name} is {here:.200} in process "
                    f"{number} and {there:.200} in process 0",
                    remedy="give all the same command, data, weights and version",
                )


def check_shared(folder: Path) -> None:
    """See that all processes have the same folder; all must call this, at the same point.

    Args:
      folder: it is there in process 0, which may write into it.

    Raises:
      UsageError: a process has another one; it is raised in all of them.
    """
    token, file = share(secrets.token_hex(8)), folder / "shared"
    if leads():
        file.write_text(token)
    agree(True)
    try:
        deadline = time.monotonic() + _SEEN_WITHIN
        while not (seen := _holds(file, token)) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = exchange(f"shared {token}", b"1" if seen else b"")
    finally:
        if leads():
            file.unlink(missing_ok=True)
    without = [str(number) for number, one in enumerate(found) if not one]
    if without:
        raise UsageError(
            f"process {', '.join(without)} does not see what process 0 writes there",
            file=folder,
            remedy="give a folder on a file system that all processes share",
        )


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def gather(array: Any, *, keep: bool = True) -> np.ndarray | None:
    """All of an array, on the host, though processes hold parts of it; all must call this.

    An array of three axes or more, such as a stack of layers, is gathered part by part, so that
    devices hold one whole at a time.

    Args:
      array: of jax.
      keep: whether this process wants it.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array) if keep else None
    from jax.experimental import multihost_utils

    if array.ndim < 3:
        whole = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(whole) if keep else None
    stack = np.empty(array.shape, array.dtype) if keep else None
    for index in range(len(array)):
        part = multihost_utils.process_allgather(array[index], tiled=True)
        if stack is not None:
            stack[index] = part
    return stack


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array in its place, which may be on devices of several processes that each have it."""
    if sharding.is_fully_addressable or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    here = np.asarray(array)
    return jax.make_array_from_callback(here.shape, sharding, lambda at: here[at])


def told_to_stop(step: int) -> bool:
    """Whether a process has got SIGTERM; it becomes true at the same step in all of them.

    Args:
      step: its number; all must call this in every step.
    """
    if not several():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _is_told_to_stop() -> bool:
    """Whether a process has got SIGTERM, which `told_to_stop` does not say between steps."""
    from jax._src.distributed import global_state

    client: Any = global_state.client
    try:  # where jax leaves its note of it
        return bool(client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE"))
    except (jax.errors.JaxRuntimeError, AttributeError):
        return False


@contextmanager
def together() -> Iterator[None]:
    """What processes that have started do together; at its end they wait for each other.

    Only process 0 speaks. Where one fails, the others are told and stop. After that they are to
    `leave`.
    """
    assert _watch is not None
    watch = _watch
    try:
        quiet = _without_gloo() if jax.default_backend() == "cpu" else nullcontext()
        with quiet, open(os.devnull, "w") as nowhere:
            if jax.process_index() == 0:
                yield
            else:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    yield
    except BaseException as error:
        if _is_of_device(error):
            # Most likely another process is gone, and the watch is about to say which.
            time.sleep(8.0)
        message = f"process {jax.process_index()} stopped: {_describe(error)}"
        watch.stop_others(message, code=exit_code_of(error) or 1)
        raise
    watch.finish()


@contextmanager
def _without_gloo() -> Iterator[None]:
    """Keeps from standard output whom Gloo, by which CPUs talk, says there that it has reached."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    out = os.fdopen(kept, "w", encoding=encoding, errors=errors)
    with out, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            with redirect_stdout(out):
                yield
            out.flush()
        finally:
            os.dup2(kept, 1)


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    if isinstance(error, SystemExit):
        return f"exit code {error.code}"
    return str(error) or type(error).__name__


def _is_of_device(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return "RESOURCE_EXHAUSTED" not in str(error)
        if isinstance(error, ValueError) and "Gloo" in str(error):  # as it comes when called
            return True
        error = error.__cause__
    return False


def leave(code: int) -> None:
    """Ends a process that has worked with others.

    The interpreter's usual end, and jax's, would wait for the others, and abort where one is lost
    though nobody needs it any more.
    """
    if _watch is not None:
        with suppress(OSError, ValueError):  # a full disk, or nobody who reads
            sys.stdout.flush()
            sys.stderr.flush()
        _watch.leave_last()
        os._exit(code)
