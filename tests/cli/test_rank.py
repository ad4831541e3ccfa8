"""`instructjax rank`: tables, answers from a column, metrics, rejects, wrong calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow.parquet as pq
import pytest

from instructjax.cli import rank_run
from instructjax.cli.main import main
from instructjax.cli.rank import Rank
from instructjax.data import Example
from instructjax.scoring import rank, read_metadata
from instructjax.scoring.ranking import RANK_SCHEMA
from instructjax.scoring.ranking.options import PREMISES, Normalization
from instructjax.scoring.runs import chunks

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Run:
    """The command line with the tiny model, loaded once."""
    monkeypatch.setattr(rank_run, "load_model", lambda spec, **options: tiny_model)

    def call(*args: object) -> int:
        return main(["rank", *map(str, args), "--model", FIXTURE])

    return call


ROWS = [
    {"instruction": "Add.", "input": f"{i} and 1", "output": ["1", "2", "3 4"], "gold": i % 3}
    for i in range(6)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_ranked_as_in_python(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    data, out = write(tmp_path / "d.jsonl", ROWS), tmp_path / "r.parquet"
    assert run(data, "--out", out, "--answer", "gold", "--normalization", "calibrated") == 0
    table = pq.ParquetFile(out).read()
    assert table.schema.names == RANK_SCHEMA.names and table.num_rows == 18
    examples = [
        Example(instruction=row["instruction"], input=row["input"], output=row["output"])
        for row in ROWS
    ]
    twin = rank(
        tiny_model,
        examples,
        answers=[row["gold"] for row in ROWS],
        normalization="calibrated",
        progress=False,
    )
    expected = np.concatenate(twin.posterior)
    np.testing.assert_allclose(table.column("posterior"), expected, atol=1e-5)
    best = table.filter(table.column("is_best"))
    assert np.mean(best.column("correct").to_pylist()) == twin.metrics.accuracy
    assert table.column("id").to_pylist()[::3] == [f"d:{n}" for n in range(1, 7)]
    metadata = read_metadata(table)
    assert (metadata["normalization"], metadata["model"]) == ("calibrated", "llama-tied")
    text = capsys.readouterr().out
    assert f"{twin.metrics.accuracy:.4f}" in text and f"{twin.metrics.ece:.4f}" in text
    assert "ranked the candidates of 6 rows in" in text.replace("\n", " ")


def test_answers_in_the_contract_column_and_none(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**ROWS[0], "answer": "2"}, ROWS[1], {**ROWS[2], "answer": {"why": "no index"}}]
    out = tmp_path / "r.jsonl"
    assert run(write(tmp_path / "d.jsonl", rows), "--out", out) == 0
    found = [json.loads(line)["correct"] for line in out.read_text().splitlines()]
    assert found == [False, True, False] + [None] * 3
    assert capsys.readouterr().out.count("sum") == 1
    # One that is not understood is not taken for one that is not known.
    (reject,) = (tmp_path / "r.jsonl.rejects.jsonl").read_text().splitlines()
    assert "is none of the 3 candidates" in json.loads(reject)["reason"]


def test_rows_that_cannot_be_ranked_are_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROWS[0],
        {**ROWS[1], "output": "1"},
        {**ROWS[2], "gold": "9"},
        {**ROWS[3], "gold": [1]},
        {**ROWS[4], "instruction": "7 " * 300},
        {**ROWS[5], "output": [""]},
        ROWS[5],
    ]
    data, out = write(tmp_path / "d.jsonl", rows), tmp_path / "r.csv"
    assert run(data, "--out", out, "--answer", "gold") == 0
    rejects = [
        json.loads(line) for line in (tmp_path / "r.csv.rejects.jsonl").read_text().splitlines()
    ]
    reasons = {reject["row"]: reject["reason"] for reject in rejects}
    assert sorted(reasons) == [f"line {n}" for n in (2, 3, 4, 5, 6)]
    assert "one candidate only" in reasons["line 2"]
    assert "the answer '9' is none of the 3 candidates" in reasons["line 3"]
    raws = {reject["row"]: json.loads(reject["raw"]) for reject in rejects[:2]}
    assert raws["line 3"]["answer"] == "9"
    assert raws["line 2"]["answer"] == ROWS[1]["gold"]
    assert "`gold` is a list" in reasons["line 4"]
    assert "256" in reasons["line 5"] and "candidate 1 of `output`" in reasons["line 6"]
    assert len(out.read_text().splitlines()) == 1 + 6
    assert "left out 5" in capsys.readouterr().out
    before = set(tmp_path.iterdir())
    assert run(data, "--out", tmp_path / "s.csv", "--answer", "gold", "--strict") == 1
    assert set(tmp_path.iterdir()) == before
    assert "error: 5 rows cannot be used" in capsys.readouterr().err


def test_nothing_to_rank_is_a_failure(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", [{**ROWS[0], "output": "1"}])
    assert run(data, "--out", tmp_path / "r.csv") == 1
    assert not (tmp_path / "r.csv").exists()
    assert "no row could be ranked" in capsys.readouterr().err


def test_premises(run: Run, tmp_path: Path, tiny_model: Any) -> None:
    data = write(tmp_path / "d.jsonl", ROWS)
    for name, args, premise in (
        ("a", ["--premise", "c"], "c"),
        ("b", ["--premise-text", "It is:"], Example(instruction="It is:")),
    ):
        out = tmp_path / f"{name}.parquet"
        assert run(data, "--out", out, "--normalization", "pmi", *args) == 0
        examples = [Example(**{k: v for k, v in row.items() if k != "gold"}) for row in ROWS]
        twin = rank(tiny_model, examples, normalization="pmi", premise=premise, progress=False)
        table = pq.ParquetFile(out).read()
        np.testing.assert_allclose(table.column("score"), np.concatenate(twin.score), atol=1e-4)


def test_a_cache_gives_the_same_table(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = write(tmp_path / "d.jsonl", ROWS), tmp_path / "cache"
    for name in ("a.csv", "b.csv"):
        assert run(data, "--out", tmp_path / name, "--cache", cache) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert "18 of 18 scores were found in" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_stopped_run_goes_on(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    bad = {**ROWS[0], "output": ["1", "1"]}
    rows = [bad if i % 7 == 3 else {**ROWS[i % 6], "input": f"{i} and {i}"} for i in range(14)]
    data = write(tmp_path / "d.jsonl", rows)
    args = (data, "--answer", "gold", "--normalization", "calibrated")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    out, calm = (tmp_path / name / f"r.{suffix}" for name in ("b", "a"))
    assert run(*args, "--out", calm) == 0
    summary = capsys.readouterr().out
    real, encoded = rank_run.encode_candidates, []

    def encode(model: Any, encoder: Any, example: Any, row: int, options: Any) -> Any:
        encoded.append(row)
        if len(encoded) == 9:
            raise KeyboardInterrupt
        return real(model, encoder, example, row, options)

    monkeypatch.setattr(rank_run, "encode_candidates", encode)
    assert run(*args, "--out", out) == 130
    kept = "interrupted: 6 rows are ranked and kept; the same command goes on from there"
    assert kept in capsys.readouterr().err
    assert not out.exists()
    # Of another normalization, it is another run.
    assert run(data, "--answer", "gold", "--out", out) == 2
    assert "normalization was calibrated and is sum" in capsys.readouterr().err
    encoded[:] = []
    monkeypatch.setattr(rank_run, "encode_candidates", lambda *x: encoded.append(x[3]) or real(*x))
    assert run(*args, "--out", out) == 0
    assert encoded == list(range(6, 14))
    again = capsys.readouterr()
    assert "going on after 6 rows that are ranked" in again.err
    shown = [line for line in again.out.splitlines() if " tokens in " not in line]
    assert shown == [
        line.replace("/a/", "/b/") for line in summary.splitlines() if " tokens in " not in line
    ]
    assert " computed, as prefixes are shared; " in summary
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {file.name for file in (tmp_path / "b").iterdir()}
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--help"]) == 0
    text = capsys.readouterr().out
    assert "example: instructjax rank rows.jsonl --out ranks.parquet" in text
    for name in get_args(Normalization):
        assert name in text


@pytest.mark.parametrize(
    "args",
    [
        ["--normalization", "mean"],
        ["--premise", "c"],
        ["--premise-text", "It is:"],
        ["--normalization", "pmi", "--premise", "c", "--premise-text", "It is:"],
        ["--content-free", "N/A"],
        ["--answer", "nowhere"],
        ["--answer", "gold", "--field", "answer=gold"],
        ["--layout", "chat"],
    ],
)
def test_wrong_calls(run: Run, tmp_path: Path, args: list[str]) -> None:
    data = write(tmp_path / "d.jsonl", ROWS)
    assert run(data, "--out", tmp_path / "r.csv", *args) == 2
    assert not (tmp_path / "r.csv").exists()


def test_choices_are_those_of_python() -> None:
    hints = get_type_hints(Rank)
    assert get_args(hints["normalization"]) == get_args(Normalization)
    assert get_args(hints["premise"]) == PREMISES
