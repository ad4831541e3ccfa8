"""`instructjax score` stopped in every way, and gone on with: the same file, bit for bit."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.cli import score_run, table_run
from instructjax.cli.main import main
from instructjax.data import Example
from instructjax.scoring import read_scores, score
from instructjax.scoring.runs import chunks, stream

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
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
    monkeypatch.setattr(score_run, "load_model", lambda spec, **options: tiny_model)
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


def test_strict_is_checked_once(
    run: Run, tmp_path: Path, stop: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "s.csv"
    data.write_text("".join(f'{{"instruction": "a{n}", "output": "b"}}\n' for n in range(20)))
    stop(KeyboardInterrupt(), 1)
    assert run(data, "--out", out, "--strict") == 130

    def refuse(*args: object) -> bool:
        raise AssertionError("checked again")

    monkeypatch.setattr(table_run, "check_all", refuse)
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


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_disk_too_small_for_the_table(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert run(data, "--out", tmp_path / "a" / "s.csv") == 0
    out = tmp_path / "b" / "s.csv"
    capsys.readouterr()
    # Each part fits, the table does not.
    limit = (tmp_path / "a" / "s.csv").stat().st_size * 2 // 3
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        assert run(data, "--out", out) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert "cannot be written: File too large" in err and "60 rows are kept" in err
    assert not out.exists()
    assert run(data, "--out", out) == 0
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


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
