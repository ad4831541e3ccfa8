"""`instructjax report`: files in, one page out, and how it fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from instructjax.cli.main import main

COLUMNS = ("model", "id", "metric", "value", "task", "cell", "instruction_hash", "input_hash")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """An evaluation table of 3 instructions on 4 inputs, one instruction and two inputs unseen."""
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(COLUMNS)
        for c in range(3):
            for z in range(4):
                seen_c, seen_z = ("seen", "unseen")[c == 2], ("seen", "unseen")[z > 1]
                value = 0.7 + 0.01 * z - 0.3 * (c == 2) + 0.02 * ((c + z) % 2)
                cell = f"{seen_c}_c_{seen_z}_z"
                out.writerow(["m", f"{c}{z}", "f1", value, "", cell, f"c{c}", f"z{z}"])
        out.writerow(["m", "none", "f1", "", "", "seen_c_seen_z", "c0", "z0"])
    return path


@pytest.mark.parametrize("suffix", ["html", "md", "tex"])
def test_a_page_and_its_tables(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"report.{suffix}"
    assert main(["report", str(table), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "inter-task gap 0.30" in said and "left out 1 rows" in said
    text = out.read_text("utf-8")
    assert "0.715" in text and "0.735" in text  # means of cells 0 and 1
    assert main(["report", str(table), "--out", str(out)]) == 2
    assert main(["report", str(table), "--out", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.parquet"], "there is no such file"),
        (["{table}", "--metric", "bleu"], "no metric 'bleu'"),
        (["{table}", "--model", "other"], "no model 'other'"),
        (["{split}"], "no evaluation table"),
        (["{other}"], "is no evaluation table"),
    ],
)
def test_failures(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    split, other = tmp_path / "split.json", tmp_path / "rows.jsonl"
    split.write_text(json.dumps({"recipe": {"by": "task"}}))
    other.write_text('{"instruction": "c"}\n')
    named = [word.format(table=table, split=split, other=other) for word in words]
    assert main(["report", *named, "--out", str(tmp_path / "report.html")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
