"""Options of verbs that several processes can do together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from instructjax.errors import STOPPED, UsageError


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How this process finds the others; without any of them, it is alone.

    Attributes:
      STOPS_TOGETHER: whether the verb heeds SIGTERM, in all processes after the same step.
    """

    STOPS_TOGETHER: ClassVar[bool] = False

    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute together with other processes that run the same command; on a TPU pod, SLURM,
    Kubernetes and Open MPI they are found, elsewhere give the next three."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the others find it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    join_timeout: float = 300.0
    """Seconds to wait for the other processes at the start."""
    lost_after: float = 30.0
    """Seconds without a sign of life after which a process is given up, and all others stop."""
    stalled_after: float = 1800.0
    """Seconds without progress after which a process is taken to hang, and all stop; after SIGTERM
    four times --lost-after, if that is less."""


def run_together(options: ProcessOptions, run: Callable[[], int]) -> int:
    """Runs a verb, with other processes if the options say so; returns the exit code.

    Raises:
      InstructJaxError: the others are not found, or what the verb raises.
    """
    given = (options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and given == (None, None, None):
        return run()
    for name in ("join_timeout", "lost_after", "stalled_after"):
        if not getattr(options, name) > 0:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {getattr(options, name):g} is not above 0")
    # Of what jax's C++ writes, errors: it warns of each SIGTERM that is heeded. By itself jax sets
    # it to 1, which a process that began this one may have passed on.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    from instructjax.sharding import processes

    processes.start(
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
        timeout=options.join_timeout,
        lost_after=options.lost_after,
        stalled_after=options.stalled_after,
        heed_sigterm=options.STOPS_TOGETHER,
    )
    with processes.together():
        code = run()
        if code and code != STOPPED:
            raise SystemExit(code)
        return code


def leave_together(code: int) -> int:
    """The exit code of a process; one that others were with ends here if it failed."""
    processes = sys.modules.get("instructjax.sharding.processes")
    if processes is not None:
        processes.leave(code)
    return code
