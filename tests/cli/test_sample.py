"""`instructjax sample`: a table of responses, killed and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instructjax as ij
from instructjax.cli.main import main

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
ROOT = Path(__file__).parents[2]
OPTIONS = ["--model", FIXTURE, "--max-new-tokens", "6", "--num-samples", "2", "--seed", "5"]


def write_rows(path: Path, count: int) -> None:
    """Rows without a response; now and then a bad one."""
    with path.open("w") as stream:
        for n in range(count):
            row: dict[str, Any] = {"id": f"r{n}", "instruction": f"Say {n}.", "task": f"t{n % 2}"}
            row["input"] = "x " * (n * 7 % 31)
            if n % 7 == 4:
                row["input"] = "9 " * 300
            stream.write(json.dumps(row) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.jsonl and samples.jsonl of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    write_rows(folder / "data.jsonl", 12)
    out = folder / "samples.jsonl"
    assert main(["sample", str(folder / "data.jsonl"), "--out", str(out), *OPTIONS]) == 0
    return folder


def test_the_table_is_what_sample_gives(calm: Path, tiny_model: Any) -> None:
    rows = read_lines(calm / "samples.jsonl")
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(12) if n % 7 != 4 for _ in "ab"]
    assert [row["sample"] for row in rows] == [0, 1] * 10
    examples = list(ij.read_examples(calm / "data.jsonl", needs_output=False))
    good = [x for x in examples if isinstance(x, ij.Example) and len(x.input) < 500]
    again = ij.sample(tiny_model, good[::-1], max_new_tokens=6, num_samples=2, seed=5)
    expected = {(row.id, row.sample): row for row in again}
    for row in rows:
        same = expected[row["id"], row["sample"]]
        assert row["token_ids"] == same.token_ids.tolist() and row["output"] == same.text
        assert np.float32(row["token_log_probs"]).tolist() == same.token_log_probs.tolist()
        assert row["task"] == f"t{int(row['id'][1:]) % 2}"
        assert row["log_prob"] == pytest.approx(same.log_prob, abs=1e-9)
    about = json.loads((calm / "samples.jsonl.meta.json").read_text())
    assert about["seed"] == "5" and about["temperature"] == "1.0"


def test_a_mesh_changes_nothing(calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    args = ["sample", str(calm / "data.jsonl"), "--out", str(out), *OPTIONS]
    assert main([*args, "--mesh", "data=2,fsdp=4"]) == 0
    assert read_lines(out) == read_lines(calm / "samples.jsonl")
    assert main([*args, "--overwrite", "--mesh", "data=3"]) == 2


def test_rows_that_cannot_be_answered_are_named(calm: Path) -> None:
    rejects = read_lines(calm / "samples.jsonl.rejects.jsonl")
    assert [reject["row"].split()[-1] for reject in rejects] == ["5", "12"]
    assert all("cannot be encoded" in reject["reason"] for reject in rejects)


# Ends itself as kill -9 would after so many chunks are on disk.
_KILL = """
import os, signal, sys
import instructjax.cli.sample_run as sample_run
from instructjax.cli.main import main
from instructjax.scoring.runs.parts import Parts

sample_run.SAMPLE_CHUNK_ROWS = 3
left, add = int(sys.argv[1]), Parts.add

def count(*args):
    global left
    add(*args)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Parts.add = count
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_law_8_kill_9_and_go_on(calm: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    args = ["sample", str(calm / "data.jsonl"), "--out", str(out), *OPTIONS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(kill_after: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", _KILL, str(kill_after), *args]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    assert run(2).returncode == -9
    assert not out.exists()
    rest = run(0)
    assert rest.returncode == 0, rest.stderr
    assert "going on after 6 rows that are answered" in rest.stderr
    assert "20 responses" in rest.stdout
    for name in ("samples.jsonl", "samples.jsonl.rejects.jsonl"):
        assert (tmp_path / name).read_bytes() == (calm / name).read_bytes()


def test_wrong_options(calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(calm / "data.jsonl"), str(tmp_path / "o.jsonl")
    for wrong, said in (
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-p", "0"], "top_p is 0"),
        (["--num-samples", "0"], "num_samples is 0"),
    ):
        assert main(["sample", data, "--out", out, "--model", FIXTURE, *wrong]) == 2
        assert said in capsys.readouterr().err
