"""`instructjax report`: files in, one page out, and how it fails."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from instructjax.cli.main import main
from instructjax.cli.report import Report
from instructjax.cli.report_run import write_command
from instructjax.evaluation import EVALUATION_SCHEMA
from instructjax.report import read_results


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation table of 3 instructions on 4 inputs, one instruction and two inputs unseen."""
    path = tmp_path_factory.mktemp("report") / "results.csv"
    with path.open("w", newline="") as stream:
        out = csv.DictWriter(stream, EVALUATION_SCHEMA.names)
        out.writeheader()
        same = {"model": "m", "metric": "f1", "num_references": 1, "status": "ok"}
        for c in range(3):
            for z in range(4):
                seen_c, seen_z = ("seen", "unseen")[c == 2], ("seen", "unseen")[z > 1]
                value = 0.7 + 0.01 * z - 0.3 * (c == 2) + 0.02 * ((c + z) % 2)
                cell = f"{seen_c}_c_{seen_z}_z"
                hashes = {"instruction_hash": f"c{c}", "input_hash": f"z{z}"}
                out.writerow(same | hashes | {"id": f"{c}{z}", "value": value, "cell": cell})
        out.writerow(same | {"id": "none", "cell": "seen_c_seen_z", "status": "no_value"})
    return path


def test_a_page_and_its_tables(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("html", "md", "tex"):
        out = tmp_path / f"report.{suffix}"
        assert main(["report", str(table), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "inter-task gap 0.3 (no interval)" in said and "only one is unseen" in said
        assert "Not in these numbers: 1 of 5 scores of training pairs (no value)" in said
        text = out.read_text("utf-8")
        assert "0.715" in text and "0.735" in text  # means of cells 0 and 1
    assert main(["report", str(table), "--out", str(out)]) == 2
    assert main(["report", str(table), "--out", str(out), "--overwrite"]) == 0


def test_a_split_without_leaks(table: Path, tmp_path: Path) -> None:
    leaks, out = tmp_path / "leaks.jsonl", tmp_path / "report.md"
    leaks.write_text("")
    assert main(["report", str(table), str(leaks), "--out", str(out)]) == 0


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


def test_the_verdict_in_a_terminal_has_no_escapes(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(table)
    for n, row in enumerate(read_rows(table)):
        row["value"] = row["value"] and str(float(row["value"]) + 0.01 * (n % 5))
        rows.append(
            row | {"id": f"{row['id']}x", "instruction_hash": f"{row['instruction_hash']}x"}
        )
    out = ["--out", str(tmp_path / "report.md")]
    assert main(["report", str(write_rows(tmp_path / "r.csv", rows)), *out]) == 0
    said = capsys.readouterr().out
    assert " ± " in said and "\\x" not in said and "\u00a0" not in said


def test_leaks_beside_the_split_count_once(table: Path, tmp_path: Path) -> None:
    split, leaks = tmp_path / "split.json", tmp_path / "leaks.jsonl"
    split.write_text(json.dumps({"recipe": {"by": "task"}}))
    leak = {"side": "input", "kinds": ["equal"], "train_id": "b", "id": "a"}
    leaks.write_text(json.dumps(leak) + "\n")
    for files in ([table, split, leaks], [table, leaks, split], [table, leaks, leaks]):
        assert len(read_results(files).leaks) == 1


def test_the_command_on_the_page_can_be_run_again(table: Path, tmp_path: Path) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    first = Report(results=(table,), out=out, figures=figures, epsilon=0.5, title="a b")
    words = shlex.split(write_command(first))
    assert words[:2] == ["instructjax", "report"]
    assert tyro.cli(Report, args=words[2:]) == replace(first, overwrite=True)


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        out = csv.DictWriter(stream, rows[0])
        out.writeheader()
        out.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--smallest-gap", "nan"], "smallest_gap is nan"),
        (["--smallest-gap", "-1"], "smallest_gap is -1.0"),
        (["--epsilon", "inf"], "epsilon (the threshold) is inf"),
    ],
)
def test_numbers_that_mean_nothing(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["report", str(table), *words, "--out", str(tmp_path / "report.html")]) == 2
    assert says in capsys.readouterr().err


def test_a_metric_of_ones_own_needs_a_direction(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors 1 - f1 give the gaps of f1; their direction is asked for, not guessed."""
    rows = read_rows(table)
    for row in rows:
        row["metric"] = "mine:error"
        row["value"] = str(1 - float(row["value"])) if row["value"] else ""
    errors, out = write_rows(tmp_path / "errors.csv", rows), tmp_path / "report.md"
    assert main(["report", str(errors), "--out", str(out)]) == 2
    assert "say it with --better higher or --better lower" in capsys.readouterr().err
    assert main(["report", str(errors), "--better", "lower", "--out", str(out)]) == 0
    assert "inter-task gap 0.3 (no interval)" in capsys.readouterr().out
    text = out.read_text("utf-8")
    assert "m2 − m0" in text.replace("\u00a0", " ") and "mean of all scores falls by" in text


def test_infinite_scores_are_counted_where_the_numbers_stand(table: Path, tmp_path: Path) -> None:
    rows = read_rows(table)
    rows[0]["value"], rows[3]["value"] = "-inf", "nan"
    out = tmp_path / "report.html"
    assert main(["report", str(write_rows(tmp_path / "r.csv", rows)), "--out", str(out)]) == 0
    head = out.read_text("utf-8").partition("<section")[0]
    assert "2 of 5 scores of training pairs (1 infinite, 1 no value)" in head
    assert "1 of 4 scores of new inputs" in head


def test_two_splits_and_missing_columns_are_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [tmp_path / "one.json", tmp_path / "two.json"]
    for split in splits:
        split.write_text(json.dumps({"recipe": {"by": "task"}}))
    out = ["--out", str(tmp_path / "report.html")]
    assert main(["report", str(table), *map(str, splits), *out]) == 2
    assert "is a second split" in capsys.readouterr().err
    rows = [{k: v for k, v in row.items() if k != "metric"} for row in read_rows(table)]
    assert main(["report", str(write_rows(tmp_path / "r.csv", rows)), *out]) == 2
    assert "has no column metric" in capsys.readouterr().err
    splits[0].write_text(json.dumps({"recipe": {"by": "zebra"}}))
    assert main(["report", str(table), str(splits[0]), *out]) == 1
    assert "the recipe of split.json is none" in capsys.readouterr().err


def test_the_split_gives_the_words(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split, out = tmp_path / "split.json", tmp_path / "report.md"
    split.write_text(json.dumps({"recipe": {"by": "category"}}))
    assert main(["report", str(table), str(split), "--out", str(out)]) == 0
    assert "category gap 0.3" in capsys.readouterr().out
    assert "| m2 new categories |" in out.read_text("utf-8")


@pytest.mark.parametrize("divergence", [0.31, 0.02, None])
def test_new_combinations_of_other_words_are_not_of_known_ones(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], divergence: float | None
) -> None:
    split, out = tmp_path / "split.json", tmp_path / "report.md"
    about = {"recipe": {"by": "compositional", "side": "instruction"}}
    about |= {} if divergence is None else {"compositional": {"atom_divergence": divergence}}
    split.write_text(json.dumps(about))
    assert main(["report", str(table), str(split), "--out", str(out)]) == 0
    told, page = capsys.readouterr().out, out.read_text("utf-8")
    assert ("new combinations of known words" in told) == (divergence != 0.31)
    assert ("atom divergence 0.31, where 0.02 is allowed" in told) == (divergence == 0.31)
    assert ("| m2 reworded instructions |" in page) == (divergence == 0.31)
    assert ("| atom divergence |" in page) == (divergence is not None)


def test_tables_of_several_runs(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows never count twice; two models of one name are two."""
    out = tmp_path / "report.md"
    assert main(["report", str(table), str(table), "--out", str(out)]) == 2
    assert "13 rows are in another table" in capsys.readouterr().err
    tables = []
    for run in ("one", "other"):
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        tables.append(tmp_path / f"{run}.parquet")
        about = {"m/model_fingerprint": run}
        columns = [
            pa.array([row[field.name] or None for row in rows], pa.string()).cast(field.type)
            for field in EVALUATION_SCHEMA
        ]
        schema = EVALUATION_SCHEMA.with_metadata({"instructjax": json.dumps(about)})
        pq.write_table(pa.table(columns, schema=schema), tables[-1])
    assert main(["report", *map(str, tables), "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    assert "one.parquet" in text and "other.parquet" in text and "Difference from" in text
