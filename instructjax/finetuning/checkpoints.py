"""Checkpoints of a run: written in the background, whole or not at all, kept by rule."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from instructjax.errors import DataError, InstructJaxError
from instructjax.finetuning.state import TrainState
from instructjax.sharding.processes import agree, several

_METRIC = "log_prob"


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds what changes: trained parameters, optimizer state, step, and what the loop
    must know to go on as if nothing had happened. Frozen parameters are those of the model.

    Args:
      folder: where they are.
      newest: how many of the newest are kept; the best by held-out log-probability is, besides.
      every: multiples of this are kept, too.
    """

    def __init__(self, folder: Path, *, newest: int = 2, every: int | None = None) -> None:
        # Failures are raised here; the library tells of each several times over as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").addFilter(_told_of_writes)
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _tell_but_of_closed_loops
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = _tell_unraisable_but_of_closed_loops
        self._folder = folder.resolve()
        rules: list[keep.PreservationPolicy] = [
            keep.LatestN(newest),
            keep.BestN(
                # Of equals the first, which is the run's best.
                get_metric_fn=lambda found: (found[_METRIC], -found.get("step", 0)),  # type: ignore
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if every is not None:
            rules.append(keep.EveryNSteps(every))
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("state", "loop"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(rules),
                # What a killed run was writing.
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(barrier_sync_fn=_make_barrier()),
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Those that are there, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, loop: Mapping[str, Any], *, log_prob: float | None) -> None:
        """Begins to write a checkpoint; the state may change as soon as this returns.

        Args:
          state: of the run.
          loop: JSON values.
          log_prob: held-out, in nats a token, if this state's is known.

        Raises:
          DataError: an earlier one could not be written.
        """
        step = int(state.step)
        with self._blaming():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_name_leaves(state, copy=True)),
                    loop=ocp.args.JsonSave(dict(loop)),
                ),
                metrics=None if log_prob is None else {_METRIC: log_prob, "step": step},
            )

    def wait(self) -> None:
        """Returns when all are on disk.

        Raises:
          DataError: one could not be written.
        """
        with self._blaming():
            self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state of a checkpoint, on the devices and with the frozen parameters of `like`.

        Raises:
          DataError: it is damaged or of another model.
        """
        wanted = _name_leaves(like)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeRestore(
                            item=wanted,
                            restore_args=jax.tree.map(_restore_like, wanted),
                        ),
                        loop=ocp.args.JsonRestore(),
                    ),
                )
            leaves, loop = found["state"], found["loop"]
            for name, leaf in wanted.items():
                if leaves[name].shape != leaf.shape or leaves[name].dtype != leaf.dtype:
                    raise ValueError(f"{name} is of another shape")
            if not isinstance(loop, dict) or int(leaves["step"]) != step:
                raise ValueError("it is not of this step")
        except Exception as error:
            raise DataError(
                f"the checkpoint is damaged ({str(error).splitlines()[0]:.100})",
                file=self._folder / str(step),
                remedy="delete it",
            ) from error
        return _from_leaves(like, leaves), loop

    def restore_newest(
        self, like: TrainState
    ) -> tuple[TrainState, dict[str, Any], list[InstructJaxError]] | None:
        """The newest one that is whole, and what was wrong with newer ones, which are deleted."""
        problems: list[InstructJaxError] = []
        for step in reversed(self.steps):
            found, problem = None, None
            try:
                found = self.restore(step, like)
            except DataError as error:
                problem = error
            if not agree(problem is None):
                other = DataError("it is damaged", file=self._folder / str(step))
                problems.append(problem or other)
                continue
            assert found is not None
            state, loop = found
            for damaged in self.steps:
                if damaged > step:
                    self._manager.delete(damaged)
            return state, loop, problems
        if problems:
            raise DataError(
                f"none of the {len(problems)} checkpoints can be read; the newest: "
                f"{problems[0].message}",
                file=self._folder,
                remedy="delete that folder to start afresh",
            )
        return None

    def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        self._manager.close()

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            said = _find_system_error(str(error)) or _told_of_writes.collect()
            text = said or str(error).partition("\n")[0] or repr(error)
            raise DataError(
                f"a checkpoint cannot be written ({text.strip()[:200]})",
                file=self._folder,
                remedy="make space and run the same command again; it goes on from the last one",
            ) from error


def _tell_but_of_closed_loops(kind: type[BaseException], error: BaseException, trace) -> None:
    """Writes and reads that go on after one has failed have nobody left to tell, and each says so
    with a traceback."""
    if not _is_of_closed_loop(error):
        sys.__excepthook__(kind, error, trace)


def _tell_unraisable_but_of_closed_loops(told: Any) -> None:
    if not _is_of_closed_loop(told.exc_value):
        sys.__unraisablehook__(told)


def _is_of_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _make_barrier() -> Callable[..., None] | None:
    """Where processes wait for each other; one whose part has failed does not.

    By default the library waits there before it says what went wrong, while the others wait in
    another place for what cannot come.
    """
    wait = ocp.multihost.get_barrier_sync_fn() if several() else None

    def barrier(*, key: str, timeout_ms: int) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, Exception):  # and not the end of the loop, at which the last is saved
            raise error
        assert wait is not None
        wait(key=key, timeout_ms=timeout_ms)

    return None if wait is None else barrier


def _find_system_error(text: str) -> str | None:
    """What the system said, out of a message that names every file above in any order."""
    found = re.search(r"\[os_error_code='(\d+)'", text)
    return os.strerror(int(found[1])) if found else None


class _ToldOfWrites(logging.Filter):
    """Keeps from the shell what is logged of writes that failed after the first, each of which has
    a traceback, and knows the cause where what is raised only says that the loop is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._cause: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        cause = _find_system_error(f"{record.getMessage()}\n{error}")
        self._cause = cause or self._cause
        return cause is None and not _is_of_closed_loop(error)

    def collect(self) -> str | None:
        """The cause that was told last, once."""
        gc.collect()  # a failure that nobody takes is logged when it goes
        cause, self._cause = self._cause, None
        return cause


_told_of_writes = _ToldOfWrites()


def _changing(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.trainable, "opt": state.opt_state}


def _name_leaves(state: TrainState, *, copy: bool = False) -> dict[str, jax.Array]:
    """The arrays that change, by name.

    On CPU the next step writes into the memory of this state while it is still being stored.
    """
    fresh = jnp.copy if copy and jax.default_backend() == "cpu" else jnp.asarray
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): fresh(leaf)
        for path, leaf in jax.tree.leaves_with_path(_changing(state))
    }


def _from_leaves(like: TrainState, leaves: Mapping[str, jax.Array]) -> TrainState:
    tree = jax.tree.structure(_changing(like))
    # Leaves come by name; `like` has them in order.
    found = jax.tree.unflatten(tree, [leaves[name] for name in _name_leaves(like)])
    return TrainState(
        step=found["step"],
        trainable=found["params"],
        frozen=like.frozen,
        opt_state=found["opt"],
    )


def _restore_like(leaf: jax.Array) -> ocp.ArrayRestoreArgs:
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, dtype=np.dtype(leaf.dtype), sharding=leaf.sharding
    )
