"""Texts read from files: of samples, of other tools, and of evaluation tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructjax.errors import DataError, UsageError
from instructjax.evaluation.predictions import read_predictions
from instructjax.evaluation.written import Written


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", ["output", "text"])
def test_texts_with_their_flags(tmp_path: Path, suffix: str, column: str) -> None:
    rows = [
        {"id": "a", column: "x", "status": "ok", "finish_reason": "stop_token"},
        {"id": "a", column: "", "status": "truncated=2,not_finite", "finish_reason": "length"},
        {"id": "b", column: "y", "status": "ok", "finish_reason": "stop_string"},
    ]
    assert read_predictions(write(tmp_path / f"s.{suffix}", rows)) == {
        "a": (Written(text="x"), Written(text="", flags=("truncated=2", "not_finite", "cut_off"))),
        "b": (Written(text="y"),),
    }
    bare = [{name: row[name] for name in ("id", column)} for row in rows[::2]]
    found = read_predictions(write(tmp_path / f"t.{suffix}", bare))
    assert found == {"a": (Written(text="x"),), "b": (Written(text="y"),)}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_texts_of_an_evaluation_table(tmp_path: Path, suffix: str) -> None:
    def rows_of(model: str, text: str) -> list[dict[str, Any]]:
        row = {"model": model, "id": "a", "prediction": text}
        return [
            row | {"metric": "log_prob", "prediction": None, "status": "truncated=9"},
            row | {"metric": "own:m", "status": "failed=KeyError,truncated=2,cut_off"},
            row | {"metric": "f1", "status": "truncated=2,cut_off"},
        ]

    both = write(tmp_path / f"r.{suffix}", [*rows_of("one", "x"), *rows_of("two", "y")])
    flags = ("truncated=2", "cut_off")
    assert read_predictions(both, "two") == {"a": (Written(text="y", flags=flags),)}
    with pytest.raises(UsageError, match="predictions of one, two, and none of three"):
        read_predictions(both, "three")
    alone = write(tmp_path / f"s.{suffix}", rows_of("one", "x"))
    assert read_predictions(alone, "three") == {"a": (Written(text="x", flags=flags),)}
    empty = write(tmp_path / f"t.{suffix}", rows_of("one", "x")[:1])
    with pytest.raises(DataError, match="no row has a `prediction`"):
        read_predictions(empty)
