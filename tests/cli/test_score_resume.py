"""`instructjax score` stopped in every way, and gone on with: the same file, bit for bit."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.cli import score_run
from instructjax.cli.main import main
from instructjax.data import Example
from instructjax.scoring import chunks, read_scores, score, stream

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
ROOT = Path(__file__).parents[2]
Run = Callable[..., int]


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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Run:
    """The command line with the tiny model, loaded once, in chunks of 8 rows."""
    monkeypatch.setattr(score_run, "load_model", lambda spec, dtype: tiny_model)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 8)

    def call(*args: object) -> int:
        return main(["score", *map(str, args), "--model", FIXTURE])

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    write_rows(path, 60)
    return path


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the scoring of a chunk end in an exception, once, after some that do not."""
    real = stream._score_chunk

    def arm(error: BaseException, after: int) -> None:
        count = 0

        def score_or_stop(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == after + 1:
                raise error
            return real(*args)

        monkeypatch.setattr(stream, "_score_chunk", score_or_stop)

    return arm


# Kills the same command again and again, at a random moment after it has got on; at last lets it
# end. The command runs in forks of a process that has imported everything and computed nothing.
_KILL = """
import os, random, sys, time
from pathlib import Path
import transformers
import instructjax.cli.score_run
from instructjax.cli.main import main
from instructjax.scoring import chunks
from instructjax.scoring.resume import count_kept

transformers.AutoTokenizer.from_pretrained(sys.argv[-3])
chunks.CHUNK_ROWS = 8
wanted, out, args = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
rng = random.Random(8)
kills, kept = 0, []
while True:
    child = os.fork()
    if child == 0:
        os._exit(main(args))
    before, ended = count_kept(out), 0
    if kills < wanted:
        more = rng.choice([0, 8, 8, 16])
        while not ended and count_kept(out) < before + more:
            ended = os.waitpid(child, os.WNOHANG)[0]
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 2) if more == 0 else rng.uniform(0, 0.04))
        if not ended:
            os.kill(child, 9)
    code = None if ended else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept.append(count_kept(out))
    if code != -9:
        break
    kills += 1
print("kills", kills, "kept", kept, "code", code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_law_8_kill_9_at_random_moments(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    write_rows(data, 600)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    results = []
    for name, kills in (("calm", "0"), ("killed", "9")):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "s.parquet"
        command = ["score", data, "--out", out, "--model", FIXTURE, "--contexts", "cz,z"]
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _KILL, kills, out, *command],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert result.returncode == 0, result.stderr
        results.append(result.stdout.splitlines())
    assert results[0][-1] == "kills 0 kept [0] code 0"
    assert results[1][-1].startswith("kills 9 ") and results[1][-1].endswith("code 0")
    kept = json.loads(results[1][-1].split("kept ")[1].split(" code")[0])
    assert kept[:-1] == sorted(kept[:-1]) and 0 < kept[-2] < 600 and kept[-1] == 0
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "calm")
    # The summary counts all rows, those of the killed runs included.
    calm, killed = (
        [line.partition(" to ")[0] for line in lines if line.startswith(("cz", "z", "fl", "wr"))]
        for lines in results
    )
    assert calm == killed and len(calm) == 3


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    run: Run,
    data: Path,
    tmp_path: Path,
    stop: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Any,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert run(data, "--out", tmp_path / "a" / "s.csv") == 0
    calm = capsys.readouterr()
    out = tmp_path / "b" / "s.csv"
    stop(KeyboardInterrupt(), 3)
    assert run(data, "--out", out) == 130
    assert capsys.readouterr().err == (
        "interrupted: 24 rows are scored and kept; the same command goes on from there\n"
    )
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["s.csv.parts"]
    encoded: list[int] = []
    real = score_run.encode_row

    def note(model: Any, encoder: Any, example: Example, row: int, contexts: Any) -> Any:
        encoded.append(row)
        return real(model, encoder, example, row, contexts)

    monkeypatch.setattr(score_run, "encode_row", note)
    assert run(data, "--out", out) == 0
    assert min(encoded) == 24  # what is done is not encoded again
    again = capsys.readouterr()
    assert again.err.startswith("going on after 24 rows that are scored\n")
    assert read_all(tmp_path / "a").keys() == read_all(tmp_path / "b").keys()
    for name, content in read_all(tmp_path / "a").items():
        assert (tmp_path / "b" / name).read_bytes() == content, name
    # Table, flags and rejects of all rows, whichever run they are of.
    pick = [line for line in calm.out.splitlines() if " tokens in " not in line]
    assert [line for line in again.out.splitlines() if " tokens in " not in line][:-1] == pick[:-1]
    # And the numbers that Python gives.
    examples = [Example(**json.loads(line)) for line in data.read_text().splitlines()]
    good = [e for e in examples if e.output and len(e.outputs[0]) < 300]
    table = read_scores(out)
    assert table.num_rows == sum(len(e.outputs) for e in good)
    twins = score(tiny_model, good, progress=False)
    np.testing.assert_allclose(table.column("log_prob"), twins.log_prob, atol=1e-5)


def test_ctrl_c_before_the_first_chunk_leaves_nothing(
    run: Run,
    data: Path,
    tmp_path: Path,
    stop: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop(KeyboardInterrupt(), 0)
    assert run(data, "--out", tmp_path / "s.jsonl") == 130
    assert list(tmp_path.iterdir()) == [data]
    assert "interrupted: nothing was written to" in capsys.readouterr().err


def test_another_run_is_refused_until_told_to_start_afresh(
    run: Run,
    data: Path,
    tmp_path: Path,
    stop: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "s.jsonl"
    stop(KeyboardInterrupt(), 2)
    assert run(data, "--out", out) == 130
    capsys.readouterr()
    calls = [
        (["--contexts", "cz,c"], "contexts was cz and is cz,c"),
        (["--layout", "plain"], "layout was user and is plain"),
        (["--no-include-eos"], "include_eos was true and is false"),
        (["--field", "instruction=input"], "field was none and is instruction=input"),
        (["--strict"], "strict was false and is true"),
    ]
    for options, words in calls:
        assert run(data, "--out", out, *options) == 2
        err = capsys.readouterr().err
        assert words in err and "--overwrite" in err and err.count("\n") == 1, err
    with data.open("a") as stream:
        stream.write('{"instruction": "a", "output": "b"}\n')
    assert run(data, "--out", out) == 2
    assert f"data {data} was" in capsys.readouterr().err
    assert run(data, "--out", out, "--overwrite") == 0
    assert read_scores(out).column("id")[-1].as_py() == "d:61"
    assert not (tmp_path / "s.jsonl.parts").exists()


def test_a_run_inside_the_folder_of_its_data_goes_on(
    run: Run, tmp_path: Path, stop: Callable[..., None]
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "a.jsonl", 30)
    stop(KeyboardInterrupt(), 2)
    assert run(folder, "--out", folder / "s.jsonl") == 130
    assert run(folder, "--out", folder / "s.jsonl") == 0


def test_strict_is_checked_once(
    run: Run, tmp_path: Path, stop: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "s.csv"
    data.write_text("".join(f'{{"instruction": "a{n}", "output": "b"}}\n' for n in range(20)))
    stop(KeyboardInterrupt(), 1)
    assert run(data, "--out", out, "--strict") == 130

    def refuse(*args: object) -> bool:
        raise AssertionError("checked again")

    monkeypatch.setattr(score_run, "check_all", refuse)
    assert run(data, "--out", out, "--strict") == 0
    assert read_scores(out).num_rows == 20


def test_an_error_of_the_writer_stops_the_run_and_keeps_the_rest(
    run: Run,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run(data, "--out", tmp_path / "s.csv") == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err and "rows are kept" in err and err.count("\n") == 1
    monkeypatch.setattr(os, "fsync", real)
    assert run(data, "--out", tmp_path / "s.csv") == 0
    assert capsys.readouterr().err.startswith("going on after ")


_LIMITED = """
import resource, sys
from instructjax.cli.main import main
from instructjax.scoring import chunks
chunks.CHUNK_ROWS = 8
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_disk_too_small_for_the_table(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    def call(limit: int, name: str) -> subprocess.CompletedProcess[str]:
        out = tmp_path / name / "s.csv"
        command = ["score", data, "--out", out, "--model", FIXTURE]
        return subprocess.run(
            [sys.executable, "-c", _LIMITED, str(limit), *map(str, command)],
            capture_output=True,
            text=True,
            # A limit on files is one on the compiler's, too.
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "0"},
        )

    assert call(0, "a").returncode == 0
    size = (tmp_path / "a" / "s.csv").stat().st_size
    # Each part fits, the table does not.
    stopped = call(size * 2 // 3, "b")
    assert stopped.returncode == 1, stopped.stderr
    assert "cannot be written: File too large" in stopped.stderr
    assert "60 rows are kept" in stopped.stderr
    assert not (tmp_path / "b" / "s.csv").exists()
    assert call(0, "b").returncode == 0
    left, right = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    assert left == right


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "s.csv"
    write_rows(data, 4000)
    script = _LIMITED.replace("CHUNK_ROWS = 8", "CHUNK_ROWS = 16")
    command = ["score", data, "--out", out, "--model", FIXTURE]
    with subprocess.Popen(
        [sys.executable, "-c", script, "0", *map(str, command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        while process.poll() is None and not list(tmp_path.glob("s.csv.parts/*.note")):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "rows are scored and kept; the same command goes on" in err
    assert "Traceback" not in err


def test_a_cache_is_used_and_counted(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    assert run(data, "--out", tmp_path / "a" / "s.csv") == 0
    capsys.readouterr()
    cache = ["--cache", tmp_path / "cache"]
    assert run(data, "--out", tmp_path / "b" / "s.csv", *cache) == 0
    count = read_scores(tmp_path / "b" / "s.csv").num_rows
    out = capsys.readouterr().out.replace("\n", "")
    assert f"0 of {count} scores were found in" in out
    assert run(data, "--out", tmp_path / "c" / "s.csv", *cache) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert f"{count} of {count} scores were found in" in out and "tokens in" not in out
    assert read_all(tmp_path / "b") == read_all(tmp_path / "c")
    table, plain = (read_scores(tmp_path / name / "s.csv") for name in "ba")
    np.testing.assert_allclose(table.column("log_prob"), plain.column("log_prob"), atol=1e-5)


def test_a_cached_run_goes_on_to_the_same_bits(
    run: Run, data: Path, tmp_path: Path, stop: Callable[..., None]
) -> None:
    # Rows come twice, so that later chunks find what earlier ones computed.
    data.write_text(data.read_text() * 2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert run(data, "--out", tmp_path / "a" / "s.csv", "--cache", tmp_path / "one") == 0
    out, cache = tmp_path / "b" / "s.csv", ["--cache", tmp_path / "two"]
    stop(KeyboardInterrupt(), 5)
    assert run(data, "--out", out, *cache) == 130
    # As if the last chunk had been put into the cache, and not yet among the parts.
    last = sorted((tmp_path / "b" / "s.csv.parts").glob("*.note"))[-1]
    last.unlink()
    assert run(data, "--out", out, *cache) == 0
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


# Encoding and scoring are left out: what they hold is a chunk. Prints the peaks of memory.
_MEASURE = """
import dataclasses, sys, tracemalloc
from pathlib import Path
import numpy as np
from instructjax.cli import score_run
from instructjax.cli.main import main
from instructjax.models import load_model
from instructjax.prompts import Request
from instructjax.scoring import chunks, stream
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
score_run.load_model = lambda spec, dtype: model
score_run.encode_row = encode
stream.score_requests = score
chunks.CHUNK_ROWS = 500
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


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    counts = ["500", "3000", "20000"]
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
    # 20,000 rows of 40 tokens are some 30 MB; 3,000 are more than what is held at a time.
    assert large < small * 1.2 + 1e6
    assert large < 10e6
