"""The loop in one process: it learns, looks, keeps, stops, goes on; and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from instructjax.data import Example, read_examples
from instructjax.errors import DataError, InstructJaxError, UsageError
from instructjax.finetuning import checkpoints, prepare
from instructjax.finetuning.checkpoints import Checkpoints
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config
from instructjax.finetuning.loop import finetune
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.restore import load_trained
from instructjax.finetuning.state import make_state
from instructjax.models import load_model
from instructjax.models.checkpoints.export import new_folder
from instructjax.scoring import score

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")

Config = Callable[..., FinetuneConfig]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A small run over forty rows and eight held-out ones."""

    def make(**options: Any) -> FinetuneConfig:
        for name, first, count in (("rows", 0, 40), ("new", 50, 8)):
            rows = [
                {
                    "instruction": f"Say {n}.",
                    "input": "x " * (n * 7 % 11),
                    "output": f"y {n}",
                    "task": f"t{n % 2}",
                }
                for n in range(first, first + count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        given = {
            "data": (tmp_path / "rows.jsonl",),
            "out": tmp_path / "run",
            "model": FIXTURE,
            "row_length": 128,
            "rows": 2,
            "steps": 8,
            "learning_rate": 0.01,
            "export": "none",
            **options,
        }
        return FinetuneConfig(**given)

    return make


@pytest.fixture
def steps_alike(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs with the same optimizer share one compiled step; gives the steps that were made."""
    made: list[Any] = []
    monkeypatch.setattr(prepare, "make_train_step", _share(prepare.make_train_step, made))
    return made


_shared: dict[str, Any] = {}


def _share(make: Callable[..., Any], made: list[Any]) -> Callable[..., Any]:
    def share(graphdef: Any, optimizer: Any, **options: Any) -> Any:
        rates = [float(optimizer.schedule(step)) for step in range(12)]
        key = repr((graphdef, rates, options))
        if key not in _shared:
            _shared[key] = make(graphdef, optimizer, **options)
        made.append(_shared[key])
        return _shared[key]

    return share


def run(config: FinetuneConfig, stop: int | None = None) -> tuple[list[Any], list[str]]:
    """The steps, up to one where it is left, and what was said."""
    said: list[str] = []
    reports = []
    loop = finetune(config, say=said.append)
    for report in loop:
        reports.append(report)
        if report.step == stop:
            break
    loop.close()
    return reports, said


def read_metrics(config: FinetuneConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def params_of(config: FinetuneConfig, step: int | None = None) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_trained(config.out, step).params)]


def test_it_learns_with_one_compilation_and_tells(config: Config, steps_alike: list[Any]) -> None:
    held_out = config().data[0].with_name("new.jsonl")
    run_config = config(eval_data=(held_out,), eval_every=4, share_prefixes=True)
    _shared.clear()  # a run that went on in another test has counted its own arrays
    reports, said = run(run_config)
    assert [report.step for report in reports] == list(range(9)) and said == []
    assert reports[-1].loss < reports[1].loss - 1
    # However the rows are packed, the step is one program.
    assert steps_alike[0]._cache_size() == 1
    looks = [report for report in reports if report.held_out]
    assert [look.step for look in looks] == [0, 4, 8]
    values = [look.held_out.total().per_token for look in looks]
    assert values == sorted(values)
    metrics = read_metrics(run_config)
    assert [row["step"] for row in metrics] == list(range(9))
    assert metrics[5]["loss"] == reports[5].loss and metrics[4]["held_out"]["by_set"]
    assert set(metrics[8]["held_out"]["by_cell"]["new"]) == {"t0", "t1"}
    done = json.loads((run_config.out / "done.json").read_text())
    assert done["best_step"] == 8 and done["steps"] == 8 and 0 < done["useful_share"] <= 1
    # All begin with the template's first words and "Say".
    assert done["num_computed"] == sum(row["computed"] for row in metrics[1:])
    assert done["num_computed"] < 0.9 * done["num_tokens"]
    assert done["num_sequences"] == sum(row["sequences"] for row in metrics[1:]) >= 40
    assert FinetuneConfig(**read_config(run_config.out / "config.toml")) == run_config
    environment = json.loads((run_config.out / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert any(
        "sha256" in v for v in json.loads((run_config.out / "run.json").read_text()).values()
    )


def test_held_out_log_probs_are_those_of_score(config: Config, tiny_model: Any) -> None:
    held_out = config().data[0].with_name("new.jsonl")
    reports, _ = run(config(eval_data=(held_out,), row_length=64), stop=0)
    examples = [row for row in read_examples(held_out) if isinstance(row, Example)]
    scores = score(tiny_model, examples)
    for cell, found in reports[0].held_out.cells.items():
        rows = [i for i, example in enumerate(examples) if ("new", example.task) == cell]
        assert found.num_rows == len(rows) == 4
        assert found.num_tokens == sum(int(scores.num_tokens[i]) for i in rows)
        expected = sum(float(scores.log_prob[i]) for i in rows)
        assert found.log_prob == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_left_and_called_again_it_ends_the_same(config: Config, steps_alike: list[Any]) -> None:
    calm = config(out=config().out / "calm", share_prefixes=True)
    left = config(out=config().out / "left", share_prefixes=True)
    everything, _ = run(calm)
    for stop in (3, 4, 6):
        run(left, stop=stop)
    rest, said = run(left)
    assert [report.step for report in rest] == [7, 8]
    assert said == ["going on after step 6 of 8"]
    assert rest[-1].loss == everything[-1].loss
    for a, b in zip(params_of(calm), params_of(left), strict=True):
        np.testing.assert_array_equal(a, b)
    again, said = run(left)
    assert again == [] and "is complete" in said[0]


def test_steps_hold_more_sequences_only_where_they_are_asked_to_share(config: Config) -> None:
    steps, found = {}, {}
    for share in (False, True):
        run_config = config(steps=None, epochs=3.0, share_prefixes=share)
        prepared = prepare.prepare(run_config, *prepare.load_for_training(run_config))
        made = list(prepared.batches.open())
        steps[share] = prepared.steps
        assert prepared.steps == len(made) and sum(x.num_sequences for x in made) == 120
        found[share] = [sum(getattr(x, n) for x in made) for n in ("num_computed", "num_tokens")]
    assert found[False][0] == found[False][1] == found[True][1] > found[True][0]
    assert steps[True] < steps[False]


@pytest.mark.slow
def test_another_run_in_the_folder_is_refused(config: Config, steps_alike: list[Any]) -> None:
    run(config(), stop=2)
    changed = config(learning_rate=0.02, row_length=64)
    with pytest.raises(UsageError) as told:
        run(changed)
    assert "learning_rate was 0.01 and is 0.02" in str(told.value)
    assert "row_length was 128 and is 64" in str(told.value)
    # One begun before a choice was there would go on with other rows, or be dropped.
    manifest = config().out / "run.json"
    described = json.loads(manifest.read_text())
    earlier = {name: value for name, value in described.items() if name != "share_prefixes"}
    manifest.write_text(json.dumps(earlier))
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="an earlier version .* had no share_prefixes"):
            run(config(overwrite=overwrite))
    manifest.write_text(json.dumps(described))
    # What the parameters do not depend on may change.
    reports, said = run(config(keep=5, checkpoint_every=1), stop=4)
    assert [report.step for report in reports] == [3, 4] and said == ["going on after step 2 of 8"]
    # Other data is another run, under the same name.
    same = config()
    same.data[0].write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    with pytest.raises(UsageError, match=r"rows.jsonl was \d+ bytes"):
        run(same)


@pytest.mark.parametrize("failure", ["data", "first step"])
def test_what_has_learned_nothing_does_not_hold_the_folder(
    config: Config, steps_alike: list[Any], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    make_step = prepare.make_train_step
    if failure == "data":
        with pytest.raises(DataError, match="none of its 40 rows can be used"):
            run(config(row_length=4))
    else:
        monkeypatch.setattr(prepare, "make_train_step", lambda *_, **__: _out_of_memory)
        with pytest.raises(MemoryError):
            run(config(row_length=64))
        assert (config().out / "run.json").exists()
    monkeypatch.setattr(prepare, "make_train_step", make_step)
    reports, _ = run(config(steps=2))
    assert [report.step for report in reports] == [1, 2]
    assert not list(config().out.glob("*.rejects.jsonl"))


def _out_of_memory(*_: Any) -> None:
    raise MemoryError


def test_data_that_cannot_be_used_overwrites_nothing(
    config: Config, steps_alike: list[Any]
) -> None:
    first = config(steps=2)
    run(first)
    before = params_of(first)
    with pytest.raises(DataError, match="none of its 40 rows can be used"):
        run(config(steps=2, row_length=4, overwrite=True))
    assert run(first) == ([], [f"{first.out} is complete: an earlier run had ended it"])
    for a, b in zip(before, params_of(first), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_export_of_a_complete_run_is_made_of_its_checkpoint(
    config: Config, steps_alike: list[Any]
) -> None:
    run(config(steps=2))
    model = config().out / "model"
    for options, dtype in ({"export": "last"}, "F32"), ({"export_dtype": "bfloat16"}, "BF16"):
        wanted = config(**{"steps": 2, "export": "last", **options})
        reports, said = run(wanted)
        assert reports == [] and said == ["going on after step 2 of 2"]
        with safe_open(model / "model.safetensors", "np") as stored:
            kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
        assert kinds == {dtype}
        for a, b in zip(jax.tree.leaves(load_model(model).params), params_of(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if dtype == "F32" else 2**-8)
        assert "is complete" in run(wanted)[1][0]
    # As a kill leaves it: no model, and the folder in which one was made.
    shutil.rmtree(model)
    with new_folder(model) as place:
        made_in = place.parent
        place.mkdir()
    shutil.rmtree(model)
    made_in.mkdir()
    run(wanted)
    assert model.is_dir() and not made_in.exists()
    shutil.rmtree(wanted.out / "checkpoints")
    with pytest.raises(UsageError, match="its checkpoints, of which another export could be made"):
        run(config(steps=2, export="last"))
    assert "is complete" in run(wanted)[1][0]
    made_in.mkdir()
    run(dataclasses.replace(wanted, overwrite=True))
    assert not made_in.exists()


def test_a_run_is_read_from_any_folder_but_of_its_own_base_alone(
    config: Config, steps_alike: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FIXTURE, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    given = config(steps=1, out=Path("run"), model="base", data=(Path("rows.jsonl"),))
    run(given)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_trained(tmp_path / "run").config.num_layers > 0
    # The file that it leaves describes the same run from here.
    again = FinetuneConfig(**read_config(tmp_path / "run" / "config.toml"))
    assert "is complete" in run(again)[1][0]
    described = json.loads((tmp_path / "base" / "config.json").read_text())
    described["rms_norm_eps"] = 0.5
    (tmp_path / "base" / "config.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match="is not the model that this run trained"):
        load_trained(tmp_path / "run")


def test_a_loop_that_has_not_ended_is_this_process(config: Config, steps_alike: list[Any]) -> None:
    loop = finetune(config())
    next(loop)
    with pytest.raises(UsageError, match="this process is already writing it"):
        next(finetune(config()))
    loop.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over(config: Config, steps_alike: list[Any]) -> None:
    calm = config(out=config().out / "calm")
    run(calm)
    hurt = config(out=config().out / "hurt", checkpoint_every=2)
    run(hurt, stop=6)
    folder = hurt.out / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]
    for path in (folder / "6").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[:5_000])
    # One that was being written when the process died.
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    reports, said = run(hurt)
    assert "6: the checkpoint is damaged" in said[0] and said[0].endswith("passed over")
    assert said[1] == "going on after step 4 of 8" and reports[0].step == 5
    # What orbax leaves of a read that failed is told here, and not in a test that comes later.
    gc.collect()
    for a, b in zip(params_of(calm), params_of(hurt), strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_equal_checkpoints_the_first_is_kept(tmp_path: Path, tiny_model: Any) -> None:
    """As the run's best is; the newest is kept beside it."""
    optimizer = make_optimizer(OptimizerConfig(), 4)
    state = make_state(tiny_model.params, optimizer, trainable=("*norm*",))
    kept = Checkpoints(tmp_path, newest=1)
    for step, log_prob in enumerate((-2.0, -1.0, -1.0, -1.5), 1):
        numbered = dataclasses.replace(state, step=jnp.int32(step))
        kept.save(numbered, {}, log_prob=log_prob)
        kept.wait()
    assert kept.steps == [2, 4]
    kept.close()


def test_the_cause_is_told_where_only_the_closed_loop_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Writes that go on after one has failed log what the system said, with a traceback each."""
    kept = Checkpoints(tmp_path)
    said = ValueError(
        'OUT_OF_RANGE: Error writing "p/0.0": Failed to write 8675 bytes to file 13: No space '
        "left on device [os_error_code='28']"
    )
    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=said)
    logging.getLogger("asyncio").error("something else")

    def fail(*_: Any) -> None:
        raise RuntimeError("Event loop is closed")

    kept._manager.wait_until_finished = fail  # type: ignore[method-assign]
    for cause in ("No space left on device", "Event loop is closed"):
        with pytest.raises(DataError, match=f"cannot be written \\({cause}\\)"):
            kept.wait()
    assert caplog.messages == ["something else"]


@pytest.mark.slow
def test_the_best_is_kept_and_patience_ends(config: Config, steps_alike: list[Any]) -> None:
    held_out = config().data[0].with_name("new.jsonl")
    # The rate is far too high: it gets better, then worse.
    options = {"learning_rate": 0.5, "schedule": "constant", "eval_every": 1, "keep": 1}
    run_config = config(eval_data=(held_out,), patience=3, steps=60, **options)
    reports, _ = run(run_config)
    values = [report.held_out.total().per_token for report in reports]
    best = int(np.argmax(values))
    done = json.loads((run_config.out / "done.json").read_text())
    assert done["stopped_early"] and done["best_step"] == best
    assert len(reports) - 1 == best + 3 < 60
    kept = sorted(int(path.name) for path in (run_config.out / "checkpoints").iterdir())
    assert kept == sorted({best, best + 3} - {0})


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = prepare.make_train_step

    def make_bad(*args: Any, **options: Any) -> Any:
        train_step, count = make(*args, **options), iter(range(99))

        def step(state: Any, batch: Any) -> Any:
            if next(count) == 2:
                weights = np.full_like(batch.weights, np.nan)
                return train_step(state, dataclasses.replace(batch, weights=weights))
            return train_step(state, batch)

        return step

    monkeypatch.setattr(prepare, "make_train_step", make_bad)
    run_config = config()
    with pytest.raises(InstructJaxError, match="loss of step 3 is nan") as told:
        run(run_config)
    file = run_config.out / "not_finite_step_3.safetensors"
    assert told.value.file == str(file)
    with safe_open(file, "numpy") as stored:
        assert stored.get_tensor("tokens").shape == (1, 2, 128)
        rows = json.loads(stored.metadata()["rows"])
    assert len(rows) == 2 and all("rows.jsonl, line " in place for row in rows for place in row)
    assert [row["step"] for row in read_metrics(run_config)] == [1, 2]


def test_parameters_that_are_not_finite_are_not_kept(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = prepare.make_optimizer

    def make_bad(*args: Any) -> Any:
        made = make(*args)

        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = made.update(grads, state, params)
            return jax.tree.map(lambda x: x * np.nan, updates), state

        return made._replace(update=update)

    monkeypatch.setattr(prepare, "make_optimizer", make_bad)
    run_config = config(steps=1)
    with pytest.raises(InstructJaxError, match="a parameter is not finite after step 1"):
        run(run_config)
    assert not (run_config.out / "model").exists()
    assert not any((run_config.out / "checkpoints").iterdir())


def test_callbacks_of_a_failed_save_are_not_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("Event loop is closed", "something else"):
        error = RuntimeError(text)
        checkpoints._tell_but_of_closed_loops(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: something else\n"
    others: list[Any] = []
    monkeypatch.setattr(sys, "__unraisablehook__", others.append)
    for text in ("Event loop is closed", "something else"):
        told = SimpleNamespace(exc_value=RuntimeError(text))
        checkpoints._tell_unraisable_but_of_closed_loops(told)
    assert [str(told.exc_value) for told in others] == ["something else"]


def test_data_without_a_row_to_use(config: Config, tmp_path: Path) -> None:
    run_config = config()
    run_config.data[0].write_text('{"instruction": "a", "output": ""}\n')
    with pytest.raises(DataError, match="none of its 1 rows can be used"):
        run(run_config)
    assert "no response" in (run_config.out / "data.rejects.jsonl").read_text()
    run_config.data[0].write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        run(run_config)


def test_strict_stops_at_rejects(config: Config) -> None:
    run_config = config(strict=True)
    with run_config.data[0].open("a") as stream:
        stream.write('{"instruction": "a", "output": ""}\n')
    with pytest.raises(DataError, match="1 row rejected"):
        run(run_config)


def test_a_folder_of_other_things_is_refused(config: Config) -> None:
    run_config = config()
    run_config.out.mkdir()
    (run_config.out / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds files that are not of a run"):
        run(run_config)


def test_a_folder_where_folders_cannot_be_renamed_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a bucket without a hierarchical namespace, which is mounted by gcsfuse."""
    rename, run_config = os.rename, config()

    def refuse(source: Any, *others: Any, **options: Any) -> None:
        if os.path.isdir(source) and os.listdir(source):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), source)
        rename(source, *others, **options)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UsageError, match="renamed there .Too many open.*hierarchical namespace"):
        run(run_config)
    assert set(os.listdir(run_config.out)) <= {"data.rejects.jsonl"}


def test_options_need_their_packages(
    config: Config, monkeypatch: pytest.MonkeyPatch, steps_alike: list[Any]
) -> None:
    for package, options in (("tensorboardX", {"tensorboard": True}), ("wandb", {"wandb": "p"})):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=f"pip install {package}"):
            run(config(**options))


@pytest.mark.slow
def test_numbers_go_to_tensorboard_and_wandb(
    config: Config, monkeypatch: pytest.MonkeyPatch, steps_alike: list[Any]
) -> None:
    board: list[tuple[str, float, int]] = []
    logged: list[tuple[dict[str, float], int]] = []
    writer = SimpleNamespace(
        add_scalar=lambda name, value, step: board.append((name, value, step)), close=lambda: None
    )
    opened: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        opened.append(options)
        return SimpleNamespace(
            log=lambda values, step: logged.append((values, step)), finish=lambda: None
        )

    tensorboard = SimpleNamespace(SummaryWriter=lambda folder, purge_step: writer)
    wandb = SimpleNamespace(init=init, util=SimpleNamespace(generate_id=lambda: "id7"))
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_config = config(tensorboard=True, wandb="project")
    run(run_config, stop=3)
    run(run_config)
    losses = [(row["step"], row["loss"]) for row in read_metrics(run_config)]
    assert [(step, value) for name, value, step in board if name == "loss"] == losses
    assert [(step, values["loss"]) for values, step in logged] == losses
    # The same run over there, before and after.
    assert [options["id"] for options in opened] == ["id7", "id7"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_by_pattern_and_lora(config: Config, tiny_model: Any, dtype: str) -> None:
    """Only what is to be trained changes, however it was rounded in training; merged LoRA is a
    plain model of the same shape, and adds matrices of its rank."""
    before = {jax.tree_util.keystr(p): np.asarray(x) for p, x in _leaves(tiny_model.params)}
    for options, changed in (
        ({"trainable": ("*.mlp.*",)}, "mlp"),
        ({"train": "lora", "lora_rank": 2, "lora_targets": ("q", "v")}, "attention"),
    ):
        run_config = config(
            out=config().out / changed, steps=2, dtype=dtype, export="last", **options
        )
        run(run_config)
        for after in (load_trained(run_config.out), load_model(run_config.out / "model")):
            added = {
                name: np.asarray(leaf) - before[name]
                for path, leaf in _leaves(after.params)
                if not np.array_equal(leaf, before[name := jax.tree_util.keystr(path)])
            }
            assert added and all(changed in name for name in added)
            assert jax.tree.structure(after.params) == jax.tree.structure(tiny_model.params)
            if changed == "attention":
                assert len(added) == 2
                for each in added.values():
                    values = np.linalg.svd(each, compute_uv=False)
                    assert (values[:, 2:].max(-1) < 1e-3 * values[:, 0]).all()


def _leaves(params: Any) -> list[Any]:
    return jax.tree.leaves_with_path(params)


@pytest.mark.slow
def test_learned_by_heart(config: Config) -> None:
    """32 examples again and again: near-zero loss, and each response is the likeliest one."""
    logging.getLogger("jax").setLevel(logging.ERROR)
    file = config().data[0]
    rows: list[dict[str, Any]] = [
        {
            "instruction": f"Say {n}.",
            "input": "abc"[n % 3],
            "output": f"{n * 37 % 101} {'xyz'[n % 3]}",
        }
        for n in range(32)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_config = FinetuneConfig(
        data=(file,),
        out=file.parent / "by_heart",
        model=FIXTURE,
        row_length=255,
        rows=4,
        epochs=150.0,
        learning_rate=0.01,
        schedule="linear",
        warmup_steps=10,
        export="none",
    )
    reports, _ = run(run_config)
    assert reports[-1].loss < 0.01
    examples = [Example(**row) for row in rows]
    scores = score(load_trained(run_config.out), examples)
    assert len(scores.rows) == 32 and all(row.greedy for row in scores.rows)
