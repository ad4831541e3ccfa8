"""`instructjax score`: from a file with all kinds of rows to a table, or to nothing at all."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructjax.cli import score_run
from instructjax.cli.main import main
from instructjax.cli.row_count import estimate_rows
from instructjax.data import Example
from instructjax.scoring import read_metadata, read_scores, score

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
Run = Callable[..., int]

# Ten ways to be broken; the last three can be told only with the model's tokenizer.
BROKEN: dict[str, bytes] = {
    "not JSON": b'{"instruction": "a", "output": ',
    "not UTF-8": b'{"instruction": "caf\xe9", "output": "b"}',
    "not an object": b'["a", "b"]',
    "output` is missing": b'{"instruction": "a", "input": "b"}',
    "output` is empty": b'{"instruction": "a", "output": ""}',
    "wrong type": b'{"instruction": 7, "output": "b"}',
    "no instruction and no input": b'{"output": "b"}',
    "256": json.dumps({"instruction": "7 " * 300, "output": "b"}).encode(),
    "352": b'{"prompt_ids": [1, 2], "output_ids": [3, 352]}',
    "role": b'{"instruction": "a", "output": "b", "history": [["robot", "x"]]}',
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Run:
    """The command line with the tiny model, loaded once."""
    monkeypatch.setattr(score_run, "load_model", lambda spec, **options: tiny_model)

    def call(*args: object) -> int:
        return main(["score", *map(str, args), "--model", FIXTURE])

    return call


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[int], list[dict[str, Any]]]:
    """200 lines of which 20 are broken in 10 ways: path, line numbers, good rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines, broken, good = [], [], []
    bad = list(BROKEN.values()) * 2
    for number in range(1, 201):
        if number % 10 == 3:
            lines.append(bad.pop(0))
            broken.append(number)
        else:
            row = {"instruction": f"Say {number}.", "input": "x " * (number % 7), "output": "y"}
            good.append(row)
            lines.append(json.dumps(row).encode())
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, broken, good


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_broken_rows_are_left_out_and_named(
    run: Run,
    mixed: tuple[Path, list[int], list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Any,
) -> None:
    path, broken, good = mixed
    out = tmp_path / "scores.parquet"
    assert run(path, "--out", out) == 0
    table = read_scores(out)
    assert table.num_rows == 180
    wanted = [n for n in range(1, 201) if n not in broken]
    assert table.column("id").to_pylist() == [f"rows:{n}" for n in wanted]
    rejects = read_lines(tmp_path / "scores.parquet.rejects.jsonl")
    assert [r["row"] for r in rejects] == [f"line {n}" for n in broken]
    reasons = {int(r["row"].split()[1]): r["reason"] for r in rejects}
    for number, words in zip(broken, list(BROKEN) * 2, strict=True):
        assert words in reasons[number], number
    assert {r["file"] for r in rejects} == {str(path)}
    assert all(r["raw"] for r in rejects)
    captured = capsys.readouterr()
    assert f"wrote 180 scores of 180 rows to {out}" in captured.out.replace("\n", "")
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: 20 rows rejected (")
    # The same numbers as in Python, one by one.
    twins = score(tiny_model, [Example(**row) for row in good], progress=False)
    np.testing.assert_allclose(table.column("log_prob"), twins.log_prob, atol=1e-5)


def test_strict_writes_nothing(
    run: Run,
    mixed: tuple[Path, list[int], list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, broken, _ = mixed
    before = set(tmp_path.rglob("*"))
    assert run(path, "--out", tmp_path / "s.csv", "--strict") == 1
    assert set(tmp_path.rglob("*")) == before
    out, err = capsys.readouterr()
    assert out == ""
    first, *reasons, last = err.splitlines()
    assert first.startswith("error: 20 rows cannot be used")
    assert [line.split(",")[1].split(":")[0] for line in reasons] == [
        f" line {n}" for n in broken[:5]
    ]
    assert last == "  and 15 more"


def test_strict_with_good_rows_is_as_without(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"instruction": "a", "output": ["b", "c"]}\n')
    assert run(data, "--out", tmp_path / "s.jsonl", "--strict") == 0
    assert run(data, "--out", tmp_path / "t.jsonl") == 0
    assert (tmp_path / "s.jsonl").read_bytes() == (tmp_path / "t.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.rejects.jsonl"))


def test_nothing_to_score_is_a_failure(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"instruction": "a", "output": ""}\n{"instruction": "", "output": "b"}\n')
    out = tmp_path / "s.jsonl"
    assert run(data, "--out", out) == 1
    assert not out.exists()
    assert len(read_lines(tmp_path / "s.jsonl.rejects.jsonl")) == 2
    said = capsys.readouterr().err
    assert "no row could be scored" in said and "; the first, " in said
    assert "d.jsonl, line 1: no response" in said


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_contexts_candidates_and_order(run: Run, tmp_path: Path, format: str) -> None:
    data = tmp_path / "d.csv"
    with data.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["q", "text", "a", "task"])
        writer.writerows([[f"Do {i}.", "z " * i, f"y{i}", f"t{i}"] for i in range(30)])
    out = tmp_path / f"s.{format}"
    fields = ["--field", "instruction=q", "--field", "input=text", "--field", "output=a"]
    assert run(data, "--out", out, *fields, "--contexts", "none,cz", "--no-include-eos") == 0
    table = read_scores(out)
    found = table.select(["id", "context", "task"]).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        (f"d:{i + 1}", context, f"t{i}") for i in range(30) for context in ("none", "cz")
    ]
    metadata = read_metadata(table)
    assert metadata["contexts"] == "none,cz" and metadata["include_eos"] == "false"
    assert metadata["model_fingerprint"]
    lengths = np.array(table.column("num_tokens"))
    assert [len(x) for x in table.column("token_ids").to_pylist()] == lengths.tolist()
    sums = [
        np.float64(np.array(x, np.float32).sum(dtype=np.float64))
        for x in table.column("token_log_probs").to_pylist()
    ]
    np.testing.assert_allclose(table.column("log_prob"), sums, atol=1e-12)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_entropies_ranks_and_best_tokens(
    run: Run, tmp_path: Path, format: str, top_k: int, tiny_model: Any
) -> None:
    data = tmp_path / "d.jsonl"
    rows: list[dict[str, Any]] = [
        {"instruction": f"Do {i}.", "output": "abc " * (i + 1)} for i in range(3)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / f"s.{format}"
    assert run(data, "--out", out, "--top-k", top_k) == 0
    table = read_scores(out)
    assert read_metadata(table)["top_k"] == str(top_k)
    expected = score(tiny_model, [Example(**row) for row in rows], top_k=top_k)
    for name, values in [
        ("token_entropies", expected.entropy),
        ("token_ranks", expected.rank),
        ("top_ids", expected.top_ids),
        ("top_log_probs", expected.top_log_probs),
    ]:
        found = table.column(name).to_pylist()
        for own, twin in zip(found, values, strict=True):
            np.testing.assert_array_equal(np.array(own, twin.dtype), twin.ravel())
    assert all(rank >= 1 for ranks in table.column("token_ranks").to_pylist() for rank in ranks)
    assert run(data, "--out", tmp_path / "plain.csv") == 0
    assert "token_ranks" not in read_scores(tmp_path / "plain.csv").column_names


@pytest.mark.parametrize("top_k", [-1, 1025, 10**12])
def test_a_number_of_the_best_is_checked_before_the_model_is_loaded(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    top_k: int,
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setattr("instructjax.cli.score_run.load_model", None)
    assert run(data, "--out", tmp_path / "s.csv", "--top-k", top_k) == 2
    assert "from 0 to 1,024" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["d.jsonl"]


def test_more_of_the_best_than_there_are_tokens(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    assert run(data, "--out", tmp_path / "s.csv", "--top-k", 353) == 2
    assert "from 0 to 352" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_a_row_is_scored_under_all_contexts_or_left_out(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    rows = [{"prompt_ids": [5], "output_ids": [6]}, {"instruction": "a", "output": "b"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(data, "--out", tmp_path / "s.csv", "--contexts", "cz,c") == 0
    assert read_scores(tmp_path / "s.csv").column("id").to_pylist() == ["d:2", "d:2"]
    (reject,) = read_lines(tmp_path / "s.csv.rejects.jsonl")
    assert reject["row"] == "line 1" and "context" in reject["reason"]


def test_the_summary(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.jsonl"
    rows = [
        {"instruction": "a", "output": ["bb", "ccc"]},
        {"instruction": "9 " * 300, "output": "d"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(data, "--out", tmp_path / "s.csv", "--truncation", "left") == 0
    table = read_scores(tmp_path / "s.csv").to_pydict()
    out = capsys.readouterr().out
    header, line = out.splitlines()[:2]
    assert " ".join(header.split()) == "context scores tokens nats a token bits a byte greedy"
    nats, tokens = sum(table["log_prob"]), sum(table["num_tokens"])
    assert line.split() == [
        "cz",
        "3",
        str(tokens),
        f"{nats / tokens:.4f}",
        f"{-nats / np.log(2) / 6:.4f}",
        "0.0%",
    ]
    assert "flagged in the column status: 1 truncated" in out
    assert "wrote 3 scores of 2 rows" in out and "nothing was left out" in out


def test_wrong_calls_end_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(spec: str, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(score_run, "load_model", refuse)
    data, there = tmp_path / "d.jsonl", tmp_path / "there.csv"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    there.write_text("mine")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(data, folder)
    (tmp_path / "d.xlsx").write_text("x")
    out = ["--out", tmp_path / "s.csv"]
    calls = [
        ([tmp_path / "none.jsonl", *out], "no such file"),
        ([tmp_path / "d.xlsx", *out], "extension"),
        ([data, "--out", tmp_path / "s.txt"], ".parquet, .jsonl, .csv"),
        ([data, "--out", there], "--overwrite"),
        ([data, "--out", data, "--overwrite"], "is data and would be overwritten"),
        ([folder, "--out", folder / "s.csv"], "would be read as data the next time"),
        ([folder, "--out", folder / "deep" / "s.csv"], "would be read as data the next time"),
        ([tmp_path / "d.jsonl", *out, "--contexts", "cz,zz"], "cz, c, z, none"),
        ([data, *out, "--layout", "chat"], "user, system, plain"),
        ([data, *out, "--format", "xml"], "contract"),
        ([data, *out, "--field", "instruction"], "NAME=COLUMN"),
        ([data, *out, "--field", "output=nope"], "nope"),
        ([data, *out, "--max-length", "1"], "max_length"),
        ([data, *out, "--model", tmp_path / "no.gguf"], "no such model"),
    ]
    before = set(tmp_path.iterdir())
    for args, words in calls:
        assert main(["score", *map(str, args)]) == 2, args
        err = capsys.readouterr().err
        assert words in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert set(tmp_path.iterdir()) == before
    assert there.read_text() == "mine"


def test_rejects_would_not_overwrite_the_data(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "s.csv.rejects.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    assert run(data, "--out", tmp_path / "s.csv") == 2
    assert data.read_text().startswith('{"instruction"')


def test_a_model_without_a_template_is_said_once(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Any,
) -> None:
    bare = dataclasses.replace(tiny_model.tokenizer, chat_template=None)
    model = dataclasses.replace(tiny_model, tokenizer=bare)
    monkeypatch.setattr(score_run, "load_model", lambda spec, **options: model)
    data = tmp_path / "d.jsonl"
    data.write_text("not JSON\n" + '{"instruction": "a", "output": "b"}\n' * 50)
    assert run(data, "--out", tmp_path / "s.jsonl") == 1
    assert list(tmp_path.iterdir()) == [data]
    err = capsys.readouterr().err
    assert "plain" in err and err.count("\n") == 1
    assert run(data, "--out", tmp_path / "s.jsonl", "--layout", "plain") == 0


def test_a_folder_of_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    pq.write_table(pa.table({"instruction": ["c"], "output": ["d"]}), folder / "b.parquet")
    assert run(folder, "--out", tmp_path / "s.jsonl") == 0
    assert read_scores(tmp_path / "s.jsonl").column("id").to_pylist() == ["a:1", "b:1"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode here")
@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_a_file_name_that_is_not_utf8(run: Run, tmp_path: Path, format: str) -> None:
    data = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    layout = tmp_path / os.fsdecode(b"caf\xe9.jinja")
    data.write_text('{"instruction": "a", "output": "b"}\n')
    layout.write_text("{{ instruction }}")
    out = tmp_path / f"s.{format}"
    assert run(data, "--out", out, "--layout", layout) == 0
    table = read_scores(out)
    assert table.column("id").to_pylist() == ["caf\\xe9:1"]
    assert read_metadata(table)["layout"] == str(layout)


def test_rows_are_counted_where_it_is_cheap(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n{}\n{}")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n3,4\n")
    pq.write_table(pa.table({"x": range(7)}), tmp_path / "c.parquet")
    assert [estimate_rows(tmp_path / n) for n in ("a.jsonl", "b.csv", "c.parquet")] == [3, 2, 7]
    assert estimate_rows(tmp_path) == 12
    (tmp_path / "d.json").write_text("[]")
    assert estimate_rows(tmp_path / "d.json") is None
    assert estimate_rows(tmp_path) is None


def test_a_reject_keeps_the_whole_row(run: Run, tmp_path: Path) -> None:
    row = {
        "id": "r1",
        "task": "t",
        "system": "s",
        "history": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "instruction": "c",
        "input": "z " * 400,
        "output": "y",
    }
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row) + "\n" + json.dumps({"instruction": "c", "output": "y"}))
    assert run(data, "--out", tmp_path / "s.csv") == 0
    (reject,) = read_lines(tmp_path / "s.csv.rejects.jsonl")
    assert json.loads(reject["raw"]) == row
    # 256 tokens are all that the model takes.
    assert "more than 256; set truncation" in reject["reason"]


@pytest.mark.parametrize(
    ("flag", "wanted"), [("--include-eos", "true"), ("--no-include-eos", "false"), (None, "true")]
)
def test_eos_is_counted_or_not(run: Run, tmp_path: Path, flag: str | None, wanted: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "c", "output": "y"}))
    assert run(data, "--out", tmp_path / "s.jsonl", *([flag] if flag else [])) == 0
    assert json.loads((tmp_path / "s.jsonl.meta.json").read_text())["include_eos"] == wanted


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make space"),
        (errno.EDQUOT, "make space"),
        (errno.EACCES, "see that the folder can be written"),
        (errno.EROFS, "see that the folder can be written"),
    ],
)
def test_what_to_do_where_nothing_can_be_written(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    remedy: str,
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "c", "output": "y"}))
    monkeypatch.setattr(os, "fsync", refuse)
    assert run(data, "--out", tmp_path / "s.csv") == 1
    err = capsys.readouterr().err
    assert f"{os.strerror(number)}; {remedy} and run the same command again" in err
