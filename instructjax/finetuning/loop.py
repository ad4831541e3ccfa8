"""The loop: step after step, looks at held-out data, checkpoints, and the model at the end."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from instructjax.errors import InstructJaxError
from instructjax.finetuning import run_folder as folder
from instructjax.finetuning.batches import StepBatch
from instructjax.finetuning.checkpoints import Checkpoints
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.export import export_result
from instructjax.finetuning.headway import Headway, StepReport
from instructjax.finetuning.metrics import Sink, open_sinks
from instructjax.finetuning.prepare import Prepared, load_for_training, prepare, settle_rows
from instructjax.finetuning.sequences import check_files
from instructjax.finetuning.step import StepMetrics
from instructjax.scoring.runs.lock import hold_lock
from instructjax.scoring.tables.disk import write_whole
from instructjax.sharding import choose_mesh
from instructjax.sharding.processes import (
    agree,
    check_alike,
    check_shared,
    leads,
    several,
    share,
    tick,
)

Say = Callable[[str], None]


def finetune(
    config: FinetuneConfig, *, say: Say = lambda _: None
) -> Generator[StepReport, None, None]:
    """Maximizes the sum of log Pr(y | c, z) over data, one step each time the loop goes round.

    Everything is kept in `config.out`. The same call again goes on where an earlier one stopped,
    in whatever way, and ends with the same parameters bit for bit; after the last step it gives
    nothing. To stop, leave the loop: a checkpoint of the last step is then written.

    Several processes (`instructjax.sharding.processes`) take the steps together: all must call
    this, with the same folder, which they share, and leave the loop after the same step.

    Args:
      config: see `FinetuneConfig`.
      say: takes lines for a person, such as rows that were left out.

    Raises:
      UsageError: options that cannot be used, an earlier run in the folder that was another, or
        a folder that processes do not share.
      DataError: data that cannot be used, or files that cannot be written.
      InstructJaxError: the loss is not finite. The batch is written out.

    For example::

        config = ij.FinetuneConfig(data=(Path("rows.jsonl"),), out=Path("run"), steps=100)
        for report in ij.finetune(config):
            print(report.step, report.loss)
        model = ij.load_model("run/model")
    """
    check_files(config)
    lead = leads()
    if lead:
        folder.make_folder(config)
    else:
        say = _say_nothing
    with ExitStack() as stack:
        if lead:
            stack.enter_context(hold_lock(config.out / "lock", of=config.out))
        if several():
            with folder.blaming(config.out):
                check_shared(config.out)
        model, encoder = load_for_training(config, choose_mesh(config.mesh))
        earlier = share(folder.rows_of_earlier(config) if lead else None)
        config = settle_rows(config, model, earlier=earlier)
        described = folder.describe_run(config, model, encoder.describe())
        check_alike(described)
        afresh = lead and folder.starts_afresh(config, described)
        if share(lead and not afresh and folder.is_complete(config)):
            say(f"{config.out} is complete: an earlier run had ended it")
            return
        prepared = prepare(config, model, encoder)
        if prepared.rejected:
            say(prepared.rejected)
        if lead:
            folder.begin(config, described, afresh=afresh)
        agree(True)  # the others look into the folder only now
        checkpoints = Checkpoints(
            config.out / folder.CHECKPOINTS, newest=config.keep, every=config.keep_every
        )
        stack.push(partial(_close, checkpoints))
        run = _Run(config, prepared, checkpoints, say)
        packages = folder.describe_environment()["packages"]
        sinks = open_sinks(config, run.logged, packages) if lead else []
        for sink in sinks:
            stack.callback(sink.close)
        yield from run.go(sinks)
        checkpoints.wait()
        run.finish()


class _Run:
    """The state of a run between steps."""

    def __init__(
        self, config: FinetuneConfig, prepared: Prepared, checkpoints: Checkpoints, say: Say
    ) -> None:
        self._config, self._prepared, self._checkpoints = config, prepared, checkpoints
        self._say = say
        self._state, self._headway = prepared.init(), Headway()
        self._step = 0
        self.logged = -1
        restored = checkpoints.restore_newest(self._state)
        if restored is not None:
            self._state, loop, problems = restored
            for problem in problems:
                say(f"{problem.file}: {problem.message}; passed over")
            self._headway = Headway.from_json(loop)
            self._step = self.logged = int(self._state.step)
            say(f"going on after step {self._step:,} of {prepared.steps:,}")

    def go(self, sinks: list[Sink]) -> Generator[StepReport, None, None]:
        """Steps until the end, or until the one who asks for them stops."""
        config, prepared = self._config, self._prepared
        batches = prepared.batches.open()
        if self._headway.data is not None:
            batches.set_state(self._headway.data)
        last_saved = self._step
        try:
            if self._step == 0 and prepared.evaluate is not None:
                yield self._tell(sinks, self._look(_before(prepared.steps)))
            while not self._over():
                report = self._take_step(batches)
                if self._is_time(config.eval_every) and prepared.evaluate is not None:
                    report = self._look(report)
                if report.held_out and self._headway.best_step == self._step:
                    report = dataclasses.replace(report, saved=True)
                if self._is_time(config.checkpoint_every) or self._over():
                    report = dataclasses.replace(report, saved=True)
                if report.saved:
                    self._save(report)
                    last_saved = self._step
                yield self._tell(sinks, report)
        except GeneratorExit:
            if last_saved != self._step:
                self._save(None)
            self._checkpoints.wait()
            raise
        finally:
            batches.close()

    def finish(self) -> None:
        """Writes the model, and that the run is done."""
        config, headway = self._config, self._headway
        state, step = self._state, self._step
        if config.export_choice == "best" and headway.best_step != step:
            step = headway.best_step
            state = self._checkpoints.restore(step, state)[0] if step else self._prepared.init()
        if config.export_choice != "none":
            export_result(config, self._prepared.model, self._prepared.graphdef, state)
        summary = {
            "steps": self._step,
            "stopped_early": self._step < self._prepared.steps,
            "exported_step": None if config.export_choice == "none" else step,
            "export": folder.describe_export(config),
            **{k: v for k, v in headway.to_json().items() if k not in ("data", "worse")},
            "waited_share": headway.waited_share,
            "useful_share": headway.useful_share,
            "sequences": self._prepared.num_sequences,
        }
        if not leads():
            return
        with folder.blaming(config.out):
            write_whole(config.out / folder.DONE, json.dumps(summary, indent=2) + "\n")

    def _take_step(self, batches: Any) -> StepReport:
        start = time.monotonic()
        made: StepBatch = next(batches)
        ready = time.monotonic()
        self._state, metrics = self._prepared.train_step(self._state, made.batch)
        metrics = StepMetrics(*(np.asarray(value).item() for value in metrics))
        report = StepReport(
            step=self._step + 1,
            steps=self._prepared.steps,
            loss=float(metrics.loss),
            learning_rate=float(metrics.learning_rate),
            grad_norm=float(metrics.grad_norm),
            num_response_tokens=made.num_response_tokens,
            num_sequences=made.num_sequences,
            num_tokens=made.num_tokens,
            num_computed=made.num_computed,
            seconds=time.monotonic() - ready,
            waited=ready - start,
        )
        if not metrics.finite:
            self._stop_for(made, report)
        self._step += 1
        tick()
        packing = self._prepared.batches.packing
        positions = packing.rows * packing.length
        self._headway = self._headway.add(report, batches.get_state(), positions)
        return report

    def _look(self, report: StepReport) -> StepReport:
        assert self._prepared.evaluate is not None
        held_out = self._prepared.evaluate(self._state)
        if not math.isfinite(held_out.total().log_prob):
            raise InstructJaxError(
                f"the held-out log-probability is not finite after step {self._step:,}",
                file=self._config.out,
                remedy="give another --out and a lower learning rate",
            )
        self._headway = self._headway.look(self._step, held_out)
        return dataclasses.replace(report, held_out=held_out)

    def _is_time(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self._prepared.steps

    def _over(self) -> bool:
        patience = self._config.patience
        early = patience is not None and self._headway.worse >= patience
        return early or self._step >= self._prepared.steps

    def _save(self, report: StepReport | None) -> None:
        if _count_not_finite(self._state.trainable):
            raise InstructJaxError(
                f"a parameter is not finite after step {self._step:,}; nothing of it is kept",
                file=self._config.out,
                remedy="give another --out and a lower learning rate, or another optimizer",
            )
        value = report.held_out.total().per_token if report and report.held_out else None
        self._checkpoints.save(self._state, self._headway.to_json(), log_prob=value)

    def _tell(self, sinks: list[Sink], report: StepReport) -> StepReport:
        for sink in sinks:
            sink.write(report.step, report.to_json())
        return report

    def _stop_for(self, made: StepBatch, report: StepReport) -> None:
        """Writes out the batch that has no finite loss, and stops the run."""
        path = self._config.out / f"not_finite_step_{report.step}.safetensors"
        if leads():
            self._write_out(made, path)
        raise InstructJaxError(
            f"the loss of step {report.step:,} is {report.loss} and its gradient's norm "
            f"{report.grad_norm}; the parameters are those before it",
            file=path,
            remedy="this file holds the batch and names its rows: look for what is special in "
            "them, or give another --out and a lower learning rate",
        )

    def _write_out(self, made: StepBatch, path: Path) -> None:
        batch = self._prepared.batches.build(made.plan)
        arrays = {
            name: np.ascontiguousarray(getattr(batch.batch, name))
            for name in ("tokens", "positions", "ends", "sources", "targets", "num_scored")
        }
        arrays["weights"] = np.ascontiguousarray(batch.weights)
        places = [[self._prepared.batches.place(index) for index in row] for row in made.plan]
        with folder.blaming(path):
            path.write_bytes(save(arrays, metadata={"rows": json.dumps(places)}))


def _close(checkpoints: Checkpoints, kind: type[BaseException] | None, *_: Any) -> None:
    # After a failure the others are not there to end a checkpoint together: they must be told.
    if kind in (None, GeneratorExit) or not several():
        checkpoints.close()


def _say_nothing(_: str) -> None: ...


def _before(steps: int) -> StepReport:
    nan = math.nan
    return StepReport(
        step=0,
        steps=steps,
        loss=nan,
        learning_rate=nan,
        grad_norm=nan,
        num_response_tokens=0,
        num_sequences=0,
        num_tokens=0,
        num_computed=0,
        seconds=0.0,
        waited=0.0,
    )


@jax.jit
def _count_not_finite(params: Any) -> jax.Array:
    return sum(
        (jnp.sum(~jnp.isfinite(x)) for x in jax.tree.leaves(params)), jnp.zeros((), jnp.int32)
    )
