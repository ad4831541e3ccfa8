"""The command line of `instructjax finetune`: options, files, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.finetune import Finetune
from instructjax.cli.main import main
from instructjax.finetuning import loop
from instructjax.finetuning.config import FinetuneConfig

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Finetune]:
    """What the verb was asked to do; it does nothing."""
    asked: list[Finetune] = []
    monkeypatch.setattr(Finetune, "run", lambda options: asked.append(options) or 0)
    return asked


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(FinetuneConfig):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert "example: instructjax finetune config.toml --learning-rate 1e-4" in text


def test_help_loads_no_jax() -> None:
    code = (
        "import sys; from instructjax.cli.main import main; main(['finetune', '--help']); "
        "print([name for name in ('jax', 'grain', 'orbax', 'optax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_flags_count_more_than_the_file(tmp_path: Path, seen: list[Finetune]) -> None:
    file = tmp_path / "c.toml"
    file.write_text('data = ["a.jsonl", "b.jsonl"]\nlearning-rate = 0.5\nkeep = 7\nstrict = true\n')
    flags = ["--out", "run", "--learning-rate", "1e-4", "--data", "c.jsonl", "--clip-norm", "None"]
    assert main(["finetune", str(file), *flags]) == 0
    (options,) = seen
    assert options.data == (Path("c.jsonl"),) and options.out == Path("run")
    assert options.learning_rate == 1e-4 and options.keep == 7 and options.strict
    assert options.clip_norm is None and options.schedule == "cosine"


def test_without_a_file(seen: list[Finetune]) -> None:
    assert main(["finetune", "--data", "a.jsonl", "b.jsonl", "--out", "run", "--no-packing"]) == 0
    assert seen[0].data == (Path("a.jsonl"), Path("b.jsonl")) and not seen[0].packing


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{}/none.toml"], "cannot be read"),
        (["{}/wrong.toml", "--out", "run"], "did you mean 'learning_rate'"),
        (["--data", "a", "--out", "run", "--keep", "1", "{}/wrong.toml"], "must come first"),
        (["--data", "a.jsonl", "--out", "run", "--rows", "0"], "rows is 0"),
        (["--data", "{}/none.jsonl", "--out", "{}/run", "--model", FIXTURE], "no such file"),
    ],
)
def test_wrong_calls_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    (tmp_path / "wrong.toml").write_text("lerning_rate = 1\n")
    assert main(["finetune", *(word.format(tmp_path) for word in args)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": f"Say {n}.", "output": f"y {n}"} for n in range(9)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "a"}]))
    command = ["finetune", "--data", str(data), "--out", str(tmp_path / "run"), "--model", FIXTURE]
    command += ["--row-length", "64", "--rows", "2", "--epochs", "2", "--export", "none"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    # "y", " ", a digit and the end of turn, of nine rows, twice.
    assert "sequences, 72 response tokens" in out and "of the positions held one" in out
    assert "1 row rejected (1 no response)" in err
    assert main(command) == 0
    assert "is complete: an earlier run had ended it" in capsys.readouterr().err


def test_told_to_stop_when_the_steps_are_done_it_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        export_result(*args)

    export_result = loop.export_result
    monkeypatch.setattr(loop, "export_result", export)
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "Say 1.", "output": "y"}) + "\n")
    command = ["finetune", "--data", str(data), "--out", str(tmp_path / "run"), "--model", FIXTURE]
    assert main([*command, "--row-length", "64", "--rows", "1", "--steps", "1"]) == 0
    out, err = capsys.readouterr()
    assert "holds step 1" in out and "stopped after" not in err
    assert (tmp_path / "run" / "done.json").exists()
