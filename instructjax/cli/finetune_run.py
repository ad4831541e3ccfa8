"""`instructjax finetune`: runs the loop, shows how it goes, and heeds signals."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import closing
from dataclasses import fields
from types import FrameType
from typing import Any

from instructjax.cli.finetune import Finetune
from instructjax.cli.messages import escape_controls, say_error
from instructjax.display.training import TrainingProgress
from instructjax.errors import STOPPED
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.export import explain_template
from instructjax.finetuning.loop import finetune
from instructjax.finetuning.run_folder import DONE, MODEL
from instructjax.sharding.processes import leads, several, told_to_stop

_STOPPED = {signal.SIGINT: 130, signal.SIGTERM: STOPPED}


def run_finetune(options: Finetune) -> int:
    """Fine-tunes; returns the exit code: 130 or 143 after SIGINT or SIGTERM.

    Raises:
      InstructJaxError: see `finetune`.
    """
    names = [field.name for field in fields(FinetuneConfig)]
    config = FinetuneConfig(**{name: getattr(options, name) for name in names})
    with _Stop() as stop, TrainingProgress() as bar:
        steps = finetune(config, say=lambda line: say_error(line, label=""))
        with closing(steps):
            step = 0
            for report in steps:
                stop.wait_for_steps = True
                step = report.step
                bar.update(report)
                if told_to_stop(step):
                    stop.signal = signal.SIGTERM
                if stop.signal is not None:
                    break
            else:
                stop.signal = None  # what it would have stopped is done
    if stop.signal is not None:
        name = signal.Signals(stop.signal).name
        say_error(
            f"{name}: stopped after step {step:,}, and it is saved in {config.out}; the same "
            "command goes on from there",
            label="",
        )
        return _STOPPED[signal.Signals(stop.signal)]
    if leads():
        _show_end(config)
    return 0


def _show_end(config: FinetuneConfig) -> None:
    done = json.loads((config.out / DONE).read_text(encoding="utf-8"))
    early = ", stopped early" if done["stopped_early"] else ""
    best = (
        f"best held-out log Pr {done['best']:.4f} nats a token at step {done['best_step']:,}; "
        if done["best"] is not None
        else ""
    )
    speed = done["num_response_tokens"] / max(done["seconds"] + done["waited"], 1e-9)
    each = done["num_sequences"] / max(done["steps"], 1)
    line = (
        f"{done['steps']:,} steps{early} of {each:,.1f} sequences, "
        f"{done['num_response_tokens']:,} response tokens "
        f"({speed:,.0f} a second); {best}{done['num_computed']:,} of {done['num_tokens']:,} tokens "
        f"were computed, {done['useful_share']:.3f} of the positions held one, "
        f"{done['waited_share']:.2%} of the time went into waiting for data"
    )
    print(escape_controls(line))
    if done["exported_step"] is not None:
        without = None if config.adapter else explain_template(config)
        note = f"; it has {without}" if without else ""
        print(escape_controls(f"{config.out / MODEL} holds step {done['exported_step']:,}{note}"))


class _Stop:
    """Notes SIGINT and SIGTERM, so that the step that runs can end and be saved.

    Before the first step, and a second time, they interrupt at once. Several processes must stop
    after the same step: there jax notes SIGTERM (see `told_to_stop`), and SIGINT interrupts.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.wait_for_steps = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread() and not several():
            for number in _STOPPED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None or not self.wait_for_steps:
            if number == signal.SIGTERM:
                os.write(2, b"SIGTERM: stopped; what was saved before is kept\n")
                raise SystemExit(_STOPPED[signal.SIGTERM])
            raise KeyboardInterrupt
        self.signal = number
        os.write(2, b"stopping after what runs now; once more to stop at once\n")
