"""Law 3 over processes: several that train together take the steps that one takes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from instructjax.cli.main import main

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of two micro-batches a step, with rows of many lengths and held-out data."""
    for name, first, count in (("rows", 0, 60), ("held_out", 100, 12)):
        rows = [
            {
                "instruction": f"Say {n}.",
                "input": "x " * (n * 7 % 31),
                "output": "" if n % 13 == 4 else f"y {n}",
                "task": f"t{n % 3}",
            }
            for n in range(first, first + count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    values = {
        "data": [str(tmp_path / "rows.jsonl")],
        "eval_data": [str(tmp_path / "held_out.jsonl")],
        "model": str(TINY),
        "row_length": 128,
        "rows": 4,
        "micro_batches": 2,
        "steps": 6,
        "learning_rate": 0.003,
        "warmup_steps": 2,
        # Far above rounding: where a gradient is zero, Adam would divide noise by noise.
        "epsilon": 1e-4,
        "eval_every": 3,
        "checkpoint_every": 2,
        "keep": 4,
    }
    file = tmp_path / "config.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


def read_metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses, held-out log-probs and the model of two runs are alike but for rounding."""
    ours, theirs = read_metrics(found), read_metrics(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(7))
    for a, b in zip(ours, theirs, strict=True):
        for name in ("tokens", "response_tokens"):
            assert a.get(name) == b.get(name)
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(a.get(name, 0), b.get(name, 0), rtol=2e-5)
        assert ("held_out" in a) == ("held_out" in b)
        if "held_out" in a:
            cells = [row["held_out"]["by_cell"]["held_out"] for row in (a, b)]
            assert cells[0].keys() == cells[1].keys() == {"t0", "t1", "t2"}
            for cell in cells[0]:
                np.testing.assert_allclose(cells[0][cell], cells[1][cell], rtol=1e-5)
    assert theirs[-1]["loss"] < 0.9 * theirs[1]["loss"]  # far above what is compared
    names = sorted(file.name for file in (expected / "model").iterdir())
    assert sorted(file.name for file in (found / "model").iterdir()) == names
    assert sorted(file.name for file in found.iterdir()) == sorted(
        file.name for file in expected.iterdir()
    )
    (tensors,) = (name for name in names if name.endswith(".safetensors"))
    models = [load_file(run / "model" / tensors) for run in (found, expected)]
    assert models[0].keys() == models[1].keys()
    for name, value in models[1].items():
        limit = 1e-4 * max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(models[0][name], value, rtol=0, atol=limit)


@pytest.fixture
def alone(config: Path, tmp_path: Path) -> Path:
    """The run of one process with one device."""
    assert main(["finetune", str(config), "--out", str(tmp_path / "alone")]) == 0
    return tmp_path / "alone"


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [
        (2, 2, "data=-1"),
        pytest.param(4, 1, "fsdp=4", marks=pytest.mark.slow),
        pytest.param(4, 2, "data=2,fsdp=2,tensor=2", marks=pytest.mark.slow),
    ],
)
def test_laws_3_and_7_processes_take_the_steps_of_one(
    start, config, alone, tmp_path, count, devices, mesh
):
    out = tmp_path / "many"
    together = start(
        ["finetune", config, "--out", out, "--mesh", mesh], count=count, devices=devices
    )
    first, *others = together.ends()
    assert first.code == 0, first.err
    assert_same_run(out, alone)
    assert "6 steps of " in first.out and "step 6 of 6" in first.err
    for other in others:
        assert other.code == 0, other.err
        assert "steps" not in other.out and "step" not in other.err
    rejects = [(run / "data.rejects.jsonl").read_text() for run in (out, alone)]
    assert rejects[0] == rejects[1] and rejects[0].count("\n") == 6


# Steps take half a second more. jax comes where the verb brings it: what it says in a shell depends
# on what is set before that.
SLOW_STEPS = """
cli = sys.modules["instructjax.cli.main"]
begin = cli.run_together
def slowly(options, run):
    def run_slowly():
        import time
        from instructjax.finetuning.loop import _Run
        take = _Run._take_step
        _Run._take_step = lambda *a: (time.sleep(0.5), take(*a))[1]
        return run()
    return begin(options, run_slowly)
cli.run_together = slowly
"""


@pytest.mark.slow
def test_laws_3_and_8_a_run_goes_on_with_other_processes_and_meshes(start, config, alone, tmp_path):
    """Two processes over fsdp, told to stop; four over another mesh, killed; then one."""
    out = tmp_path / "run"
    command = ["finetune", config, "--out", out]

    def has(step: int) -> bool:
        return f'"step": {step},' in (out / "metrics.jsonl").read_text()

    def saved(step: int) -> bool:
        return (out / "checkpoints" / str(step)).exists()

    # No checkpoint is due: the one of the stop is the only one.
    together = start([*command, "--checkpoint-every", "50"], before=SLOW_STEPS)
    together.wait_for(lambda: (out / "metrics.jsonl").exists() and has(1))
    together.signal(1, signal.SIGTERM)
    for end in together.ends():
        assert end.code == 143 and "preemption_notifier" not in end.err, end.err
    stopped = read_metrics(out)[-1]["step"]
    assert 1 <= stopped < 5 and saved(stopped)

    together = start([*command, "--mesh", "data=4,tensor=2"], count=4, before=SLOW_STEPS)
    together.wait_for(lambda: has(stopped + 1))
    killed = together.signal(3, signal.SIGKILL)
    for number, end in enumerate(together.ends()):
        if number != 3:
            assert end.code == 1 and end.when - killed < 10
            assert end.errors == ["error: process 3 is gone: its connection was closed"]
    (end,) = start([*command, "--mesh", "fsdp=2,tensor=2"], count=1, devices=4).ends()
    assert end.code == 0 and "going on after step" in end.err
    assert_same_run(out, alone)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_before_the_first_step(start, config, tmp_path):
    """Each process has a folder of this name, as on machines without a common file system."""
    (tmp_path / "b").mkdir()
    own = "from instructjax.sharding import processes; processes._SEEN_WITHIN = 2; "
    own += f"sys.argv[sys.argv.index({str(tmp_path / 'a')!r})] = {str(tmp_path / 'b')!r}"
    for end in start(["finetune", config, "--out", tmp_path / "a"], before={1: own}).ends():
        assert end.code == 2, end
        (error,) = end.errors
        assert "process 1 does not see what process 0 writes there; give a folder on" in error
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "mesh"), [(2, 2, "fsdp=4"), (4, 2, "data=2,fsdp=2,tensor=2")]
)
def test_law_3_lora_and_its_adapter_by_processes(start, config, tmp_path, count, devices, mesh):
    options = ["--train", "lora", "--lora-rank", "2", "--adapter", "--learning-rate", "0.03"]
    runs = [tmp_path / name for name in ("one", "many")]
    command = ["finetune", str(config), *options]
    assert main([*command, "--out", str(runs[0])]) == 0
    together = start([*command, "--out", runs[1], "--mesh", mesh], count=count, devices=devices)
    for end in together.ends():
        assert end.code == 0, end.err
    one, many = (load_file(run / "model" / "adapter_model.safetensors") for run in runs)
    assert one.keys() == many.keys()
    assert max(np.abs(value).max() for name, value in one.items() if "lora_B" in name) > 0.02
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=0, atol=1e-4 * np.abs(value).max())
