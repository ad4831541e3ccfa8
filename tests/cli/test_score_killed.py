"""`instructjax score` as a process: killed at random moments, interrupted, and its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from instructjax.scoring import read_scores

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
ROOT = Path(__file__).parents[2]


def write_rows(path: Path, count: int) -> None:
    """Rows of many lengths, now and then two candidates, now and then a bad row."""
    with path.open("w") as stream:
        for n in range(count):
            row: dict[str, Any] = {"instruction": f"Say {n}.", "input": "x " * (n * 7 % 31)}
            row["output"] = ["y", f"no {n}"] if n % 5 == 0 else f"y {n}"
            if n % 13 == 4:
                row["output"] = "" if n % 2 else "9 " * 300
            stream.write(json.dumps(row) + "\n")


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# For each table: kills the same command again and again, at a random moment after it has got on;
# at last lets it end. It runs in forks of a process that has imported everything and computed
# nothing.
_KILL = """
import os, random, sys, time
from pathlib import Path
import transformers
import instructjax.cli.score_run
from instructjax.cli.main import main
from instructjax.scoring.runs import chunks
from instructjax.scoring.runs.folder import count_kept

data, model = sys.argv[1:3]
options = sys.argv[3].split()
transformers.AutoTokenizer.from_pretrained(model)
chunks.CHUNK_ROWS = 8
rng = random.Random(8)

def run(out, wanted):
    kills, kept = 0, []
    while True:
        child = os.fork()
        if child == 0:
            args = ["--out", str(out), "--model", model, *options]
            os._exit(main(["score", data, *args]))
        before, ended = count_kept(out), 0
        if kills < wanted:
            more = rng.choice([0, 8, 8, 16])
            while not ended and count_kept(out) < before + more:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            deadline = time.monotonic() + rng.uniform(0, 1.5 if more == 0 else 0.04)
            while time.monotonic() < deadline and count_kept(out) < before + 40:
                time.sleep(0.002)
            if not ended:
                os.kill(child, 9)
        if not ended:
            _, status = os.waitpid(child, 0)
        kept.append(count_kept(out))
        if os.waitstatus_to_exitcode(status) != -9:
            code = os.waitstatus_to_exitcode(status)
            print("kills", kills, "kept", kept, "code", code, flush=True)
            return
        kills += 1

for job in sys.argv[4:]:
    out, wanted = job.rsplit("=", 1)
    run(Path(out), int(wanted))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("options", ["--contexts cz,z", "--contexts cz,z --top-k 3"])
def test_law_8_kill_9_at_random_moments(tmp_path: Path, options: str) -> None:
    data = tmp_path / "d.jsonl"
    write_rows(data, 600)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for folder in (calm, killed):
        folder.mkdir()
    command = [data, FIXTURE, options, f"{calm / 's.parquet'}=0", f"{killed / 's.parquet'}=6"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILL, *map(str, command)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    ends = [line for line in lines if line.startswith("kills")]
    assert ends[0] == "kills 0 kept [0] code 0"
    assert ends[1].startswith("kills 6 ") and ends[1].endswith("code 0"), result.stderr
    kept = json.loads(ends[1].split("kept ")[1].split(" code")[0])
    assert kept[:-1] == sorted(kept[:-1]) and 0 < kept[-2] < 600 and kept[-1] == 0
    assert read_all(killed) == read_all(calm)
    # The summary counts all rows, those of the killed runs included.
    said = [line.partition(" to ")[0] for line in lines if line.startswith(("cz", "z", "fl", "wr"))]
    assert said[:3] == said[3:] and len(said) == 6, said


_INTERRUPT = """
import signal, sys
from instructjax.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from instructjax.scoring.runs import chunks
chunks.CHUNK_ROWS = 16
sys.exit(main(sys.argv[1:]))
"""


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "s.csv"
    write_rows(data, 4000)
    command = ["score", data, "--out", out, "--model", FIXTURE]
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPT, *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        while process.poll() is None and not list(tmp_path.glob("s.csv.parts/*.note")):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "rows are scored and kept; the same command goes on" in err
    assert "Traceback" not in err


# Encoding and scoring are left out: what they hold is a chunk. Prints the peaks of memory.
_MEASURE = """
import dataclasses, sys, tracemalloc
from pathlib import Path
import numpy as np
from instructjax.cli import score_run
from instructjax.cli.main import main
from instructjax.models import load_model
from instructjax.prompts import Request
from instructjax.scoring.runs import chunks, stream
from instructjax.scoring.engine import ScoredRequest

def score(model, requests, **options):
    for request in requests:
        n = request.num_tokens
        zeros = np.zeros((n, 0), np.int32)
        yield ScoredRequest(
            request=request,
            token_log_probs=np.full(n, -0.5, np.float32),
            greedy=np.ones(n, bool),
            entropy=np.ones(n, np.float32),
            rank=np.ones(n, np.int32),
            top_ids=zeros,
            top_log_probs=zeros,
        )

def encode(model, encoder, example, row, contexts):
    ids = np.arange(100, dtype=np.int32)
    return [Request(ids=ids, spans=((60, 100),), num_bytes=1, row=row)]

model = load_model(sys.argv[1])
score_run.load_model = lambda spec, **options: model
score_run.encode_row = encode
stream.score_requests = score
chunks.CHUNK_ROWS = 200
folder = Path(sys.argv[2])
for count in map(int, sys.argv[3:]):
    data, out = folder / f"{count}.jsonl", folder / f"{count}.parquet"
    with data.open("w") as lines:
        lines.writelines('{"instruction": "a", "output": "b"}\\n' for _ in range(count))
    tracemalloc.start()
    assert main(["score", str(data), "--out", str(out), "--model", sys.argv[1]]) == 0
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    counts = ["200", "1000", "6000"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MEASURE, FIXTURE, tmp_path, *counts],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    _, small, large = (int(line) for line in result.stdout.splitlines() if line.isdecimal())
    for count in counts:
        assert read_scores(tmp_path / f"{count}.parquet").num_rows == int(count)
    # 6,000 rows of 40 tokens are some 9 MB; 1,000 are more than what is held at a time.
    assert large < small * 1.2 + 1e6
