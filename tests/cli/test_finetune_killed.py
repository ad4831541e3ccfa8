"""`instructjax finetune` as a process: killed at random moments, told to stop, out of disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
ROOT = Path(__file__).parents[2]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def write_config(folder: Path, **options: Any) -> Path:
    """A run of some seconds: many lengths, held-out data, micro-batches, now and then a bad row."""
    data, held_out = folder / "rows.jsonl", folder / "held_out.jsonl"
    for file, first, count in ((data, 0, 90), (held_out, 100, 12)):
        rows = [
            {
                "instruction": f"Say {n}.",
                "input": "x " * (n * 7 % 31),
                "output": "" if n % 13 == 4 else f"y {n}",
                "task": f"t{n % 3}",
            }
            for n in range(first, first + count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "data": [str(data)],
        "eval_data": [str(held_out)],
        "model": FIXTURE,
        "row_length": 128,
        "rows": 1,
        "micro_batches": 2,
        "steps": 40,
        "learning_rate": 0.003,
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "eval_every": 5,
        "checkpoint_every": 3,
        "export": "none",
        **options,
    }
    file = folder / "config.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


# For each folder: sends the same command one signal after the other, each at a random moment after
# it has got on; at last lets it end. It runs in forks of a process that has imported everything and
# computed nothing. Then prints what each folder ended with.
_KILL = """
import hashlib, json, os, random, sys, time
from pathlib import Path
import transformers
import instructjax.cli.finetune_run
from instructjax.cli.main import main

config, seed = sys.argv[1], int(sys.argv[2])
transformers.AutoTokenizer.from_pretrained(sys.argv[3])
rng = random.Random(seed)

def count(out):
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\\n")
    except FileNotFoundError:
        return 0

def run(out, signals):
    codes, reached = [], []
    for sent in [*signals, 0]:
        child = os.fork()
        if child == 0:
            os._exit(main(["finetune", config, "--out", str(out)]))
        ended, status = 0, 0
        if sent:
            # After a restart the file is cut to the checkpoint's step before it grows again.
            before = count(out)
            more, deadline = rng.choice([1, 4, 7, 11]), time.monotonic() + 300
            while not ended and count(out) in (0, before) and time.monotonic() < deadline:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.001)
            start = count(out)
            while not ended and count(out) < start + more and time.monotonic() < deadline:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            if not ended:
                os.kill(child, sent)
        if not ended:
            _, status = os.waitpid(child, 0)
        reached.append(count(out))
        codes.append(os.waitstatus_to_exitcode(status))
    print("run", json.dumps([codes, reached]), flush=True)

jobs = {Path(out): signals for out, signals in zip(sys.argv[4::2], sys.argv[5::2])}
for out, signals in jobs.items():
    run(out, map(int, signals.split()))

import jax, numpy as np
from instructjax.finetuning.checkpoints import Checkpoints
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config
from instructjax.finetuning.prepare import load_for_training, make_trainable

for out in jobs:
    options = FinetuneConfig(**read_config(out / "config.toml"))
    model, _ = load_for_training(options)
    _, init = make_trainable(options, model, options.steps)
    checkpoints = Checkpoints(out / "checkpoints")
    found = {}
    for step in checkpoints.steps:
        state, loop = checkpoints.restore(step, init())
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((state.trainable, state.opt_state, state.step)):
            digest.update(np.asarray(leaf).tobytes())
        loop = {k: v for k, v in loop.items() if k not in ("seconds", "waited")}
        found[step] = [digest.hexdigest(), loop]
    print("end", json.dumps(found), flush=True)
    checkpoints.close()
"""


def stop_and_compare(folder: Path, *, signals: list[int], seed: int, **options: Any) -> str:
    """Asserts that a run stopped by signals is an undisturbed one; returns what it said."""
    config = write_config(folder, **options)
    calm, killed = folder / "calm", folder / "killed"
    command = [config, seed, FIXTURE, calm, "", killed, " ".join(map(str, signals))]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILL, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(folder),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    runs = [json.loads(line[4:]) for line in lines if line.startswith("run ")]
    ends = [json.loads(line[4:]) for line in lines if line.startswith("end ")]
    codes = {9: -9, 15: 143}
    assert runs[0][0] == [0], result.stderr
    assert runs[1][0] == [*(codes[sent] for sent in signals), 0], (runs, result.stderr)
    # Every signal came before the end, and some after a checkpoint.
    assert all(reached < 41 for reached in runs[1][1][:-1]), runs
    assert "going on after step" in result.stderr
    # Parameters, optimizer, iterator, best so far: bit for bit those of the undisturbed run.
    assert "40" in ends[0] and ends[0] == ends[1]
    assert len({digest for digest, _ in ends[0].values()}) == len(ends[0])

    def metrics(out: Path) -> list[dict[str, Any]]:
        timed = ("seconds", "waited", "response_tokens_per_second")
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if k not in timed} for row in rows]

    assert metrics(killed) == metrics(calm)
    assert [row["step"] for row in metrics(killed)] == list(range(41))
    rejects = [(out / "data.rejects.jsonl").read_text() for out in (calm, killed)]
    assert rejects[0] == rejects[1] and rejects[0].count("\n") == 8
    return result.stderr


@needs_fork
@pytest.mark.slow
def test_law_8_killed_and_told_to_stop_at_random_moments(tmp_path: Path) -> None:
    said = stop_and_compare(tmp_path, signals=[9, 15], seed=1).splitlines()
    # SIGTERM lets the step end and saves it, whether or not a checkpoint was due.
    (stop,) = [i for i, line in enumerate(said) if line.startswith("SIGTERM")]
    step = said[stop].split("step ")[1].split(",")[0]
    assert "the same command goes on" in said[stop]
    assert f"going on after step {step} of 40" in said[stop:]


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("seed", [2, 3])
def test_law_8_kill_9_many_times(tmp_path: Path, seed: int) -> None:
    stop_and_compare(tmp_path, signals=[9, 9, 9, 15] * 5, seed=seed)


@pytest.mark.slow
@needs_fork
def test_law_8_kill_9_with_lora_in_bfloat16(tmp_path: Path) -> None:
    options = {"train": "lora", "lora_rank": 4, "dtype": "bfloat16", "optimizer": "lion"}
    stop_and_compare(tmp_path, signals=[9] * 3, seed=4, **options)


# A limit on the size of files stands for a full disk: the metrics fit, a checkpoint does not.
_FULL = """
import resource, signal, sys
from instructjax.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "run"
    command = ["finetune", config, "--out", out]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FULL, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
    )
    assert result.returncode == 1, result.stderr
    assert "a checkpoint cannot be written (" in result.stderr
    assert "File too large); make space and run the same command again" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (out / "done.json").exists()
