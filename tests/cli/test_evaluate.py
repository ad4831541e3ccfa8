"""`instructjax evaluate`: the table, several models, samples files, resuming, rejects, errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import instructjax as ij
from instructjax.cli import evaluate_run
from instructjax.cli.main import main
from instructjax.evaluation import read_evaluation, stream
from instructjax.evaluation.written import Written
from instructjax.scoring import read_metadata

FIXTURES = Path(__file__).parents[1] / "fixtures"
TIED, OTHER = str(FIXTURES / "llama-tied"), str(FIXTURES / "llama-untied")
Run = Callable[..., int]

ROWS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": f"{i} and 1", "output": ["1", "2", "3"], "gold": i % 3}
    | {"cell": "seen_c_seen_z" if i % 2 else "seen_c_unseen_z"}
    for i in range(6)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def models(tiny_model: Any) -> dict[str, Any]:
    return {TIED: tiny_model, OTHER: ij.load_model(OTHER)}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, models: dict[str, Any]) -> Run:
    """The command line with models loaded once, who write their name and the input."""
    monkeypatch.setattr(evaluate_run, "load_model", lambda spec, dtype, mesh: models[spec])

    def generate(model: Any, rows: Any, options: Any, **_: Any) -> list[Written]:
        return [Written(text=f"{model.name[6:]} {example.input[:1]}") for _, example in rows]

    monkeypatch.setattr(stream, "generate", generate)

    def call(*args: object) -> int:
        return main(["evaluate", *map(str, args)])

    return call


@pytest.mark.slow
def test_two_models_in_one_paired_table(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: dict[str, Any]
) -> None:
    data, out = write(tmp_path / "d.jsonl", ROWS), tmp_path / "r.parquet"
    args = ("--model", TIED, "--model", OTHER, "--data", data, "--field", "answer=gold")
    metrics = "log_prob,rank_accuracy,exact_match,f1,rouge_l,chrf"
    assert run(*args, "--metrics", metrics, "--out", out) == 0
    columns = read_evaluation(out)
    assert len(columns["id"]) == 2 * 6 * 6
    half = 36
    for name in ("id", "metric", "cell", "instruction_hash", "input_hash"):
        np.testing.assert_array_equal(columns[name][:half], columns[name][half:])
    assert columns["model"][0] == "llama-tied" and columns["model"][half] == "llama-untied"
    assert columns["cell"][0] == "seen_c_unseen_z" and columns["cell"][6] == "seen_c_seen_z"
    examples = [
        ij.Example(
            **{k: v for k, v in row.items() if k not in ("gold", "cell")}, answer=row["gold"]
        )
        for row in ROWS
    ]
    for k, model in enumerate(models.values()):
        twin = ij.rank(model, examples, progress=False)
        at = (columns["model"] == model.name) & (columns["metric"] == "rank_accuracy")
        assert columns["value"][at].mean() == twin.metrics.accuracy
        at = (columns["model"] == model.name) & (columns["metric"] == "log_prob")
        expected = [one.log_prob[row["gold"]] for one, row in zip(twin, ROWS, strict=True)]
        np.testing.assert_allclose(columns["value"][at], expected, atol=1e-4)
        assert columns["prediction"][k * half + 2] == f"{model.name[6:]} 0"
    # "tied 1" has one of two words of "1", "2", "3" in the row whose right answer it is.
    at = (columns["model"] == "llama-tied") & (columns["metric"] == "f1")
    assert columns["value"][at].tolist() == [0, 0, 0, 0, 0, 0]
    text = " ".join(capsys.readouterr().out.split())
    assert "llama-untied - llama-tied" in text and "clustered by instruction" in text
    assert "evaluated 2 models on 6 rows in" in text and "nothing was left out" in text
    from pyarrow import parquet

    metadata = read_metadata(parquet.ParquetFile(out).read())
    assert metadata["models"] == "llama-tied,llama-untied"
    assert metadata["llama-untied/model_fingerprint"] == models[OTHER].fingerprint


def test_samples_files_need_no_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluate_run, "load_model", refuse)
    data = write(tmp_path / "d.jsonl", [{**row, "answer": row["gold"]} for row in ROWS])
    samples = [{"id": f"d:{i}", "output": str(i)} for i in (1, 2, 2, 3)]
    file, out = write(tmp_path / "s.jsonl", samples), tmp_path / "r.csv"
    args = ("--model", TIED, "--data", data, "--predictions", file)
    assert run(*args, "--metrics", "exact_match", "--out", out) == 0
    columns = read_evaluation(out)
    np.testing.assert_array_equal(columns["value"], [1, 1, 1, np.nan, np.nan, np.nan])
    assert columns["status"].tolist() == ["ok", "samples=2", "ok", *["no_prediction"] * 3]
    # Without a model, the table names what was read.
    args = ("--data", data, "--predictions", file, "--metrics", "exact_match")
    assert run(*args, "--out", tmp_path / "s.csv") == 0
    assert set(read_evaluation(tmp_path / "s.csv")["model"]) == {"s"}
    # Without any that fits, there is nothing to tell.
    strange = write(tmp_path / "x.jsonl", [{"id": "z", "output": "1"}])
    args = ("--model", TIED, "--data", data, "--predictions", strange)
    assert run(*args, "--metrics", "exact_match", "--out", tmp_path / "n.csv") == 1
    assert not (tmp_path / "n.csv").exists()
    assert "no_prediction" in capsys.readouterr().err
    # Two rows of one id cannot be told apart.
    twins = write(tmp_path / "t.jsonl", [{**ROWS[0], "id": "a"}, {**ROWS[1], "id": "a"}])
    args = ("--model", TIED, "--data", twins, "--predictions", file)
    assert run(*args, "--metrics", "exact_match", "--out", tmp_path / "n.csv") == 1
    assert "the id 'a' comes twice" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_stopped_run_goes_on(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    models: dict[str, Any],
) -> None:
    monkeypatch.setattr(stream, "WRITTEN_ROWS", 2)
    data = write(tmp_path / "d.jsonl", [*ROWS, {"instruction": "", "output": "x"}])
    args = ("--model", TIED, "--model", OTHER, "--data", data, "--metrics", "log_prob,chrf")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    calm, out = (tmp_path / name / f"r.{suffix}" for name in ("a", "b"))
    assert run(*args, "--out", calm) == 0
    real, written = stream.generate, []

    def stop(model: Any, rows: Any, options: Any, **more: Any) -> list[Written]:
        written.append((model.name, len(rows)))
        if len(written) == 6:
            raise KeyboardInterrupt
        return real(model, rows, options, **more)

    monkeypatch.setattr(stream, "generate", stop)
    assert run(*args, "--out", out) == 130
    assert "rows are evaluated and kept; the same command goes on" in capsys.readouterr().err
    assert not out.exists()
    assert run(*args[:-1], "log_prob", "--out", out) == 2
    assert "metrics was log_prob,chrf and is log_prob" in capsys.readouterr().err
    # A model that was done is not loaded again, and no row is written twice.
    loaded: list[str] = []
    monkeypatch.setattr(
        evaluate_run, "load_model", lambda spec, **_: loaded.append(spec) or models[spec]
    )
    written.clear()
    written.extend([("", 0)] * 10)
    assert run(*args, "--out", out) == 0
    assert loaded == [OTHER]
    assert {name for name, _ in written[10:]} == {"llama-untied"}
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert names == {file.name for file in (tmp_path / "b").iterdir()}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_rows_that_cannot_be_used_are_told_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ROWS[0],
        {**ROWS[1], "gold": "9"},
        {**ROWS[2], "instruction_id_list": ["no:such"], "kwargs": [{}]},
        {**ROWS[3], "instruction": "7 " * 300},
        {"instruction": "Say."},
    ]
    data, out = write(tmp_path / "d.jsonl", rows), tmp_path / "r.jsonl"
    args = ("--model", TIED, "--model", OTHER, "--data", data, "--field", "answer=gold")
    args = (*args, "--metrics", "log_prob,ifeval")
    assert run(*args, "--out", out) == 0
    lines = (tmp_path / "r.jsonl.rejects.jsonl").read_text().splitlines()
    reasons = [(reject["row"], reject["reason"]) for reject in map(json.loads, lines)]
    assert [row for row, _ in reasons] == ["line 2", "line 3", "line 4", "line 4"]
    assert "'9' is none of the 3" in reasons[0][1] and "no:such" in reasons[1][1]
    assert "(model llama-tied)" in reasons[2][1] and "(model llama-untied)" in reasons[3][1]
    columns = read_evaluation(out)
    # What a model cannot take has its rows all the same, so that models stay paired.
    assert columns["id"][::5].tolist() == ["d:1", "d:4", "d:5"] * 2
    at = columns["metric"] == "log_prob"
    assert columns["status"][at].tolist() == ["ok", "cannot_be_encoded", "no_reference"] * 2
    assert "left out 4" in capsys.readouterr().out
    before = set(tmp_path.iterdir())
    assert run(*args, "--out", tmp_path / "s.csv", "--strict") == 1
    assert set(tmp_path.iterdir()) == before
    assert "error: 3 rows cannot be used" in capsys.readouterr().err


def test_the_file_of_ifeval_as_it_is(run: Run, tmp_path: Path) -> None:
    rows = [
        {
            "key": 1000,
            "prompt": "Say something without commas.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_words": None}],
        }
    ]
    out = tmp_path / "r.jsonl"
    data = write(tmp_path / "input_data.jsonl", rows)
    assert run("--model", TIED, "--data", data, "--metrics", "ifeval", "--out", out) == 0
    columns = read_evaluation(out)
    assert set(columns["id"]) == {"1000"} and columns["value"].tolist() == [1.0] * 4


OWN = "own_metric_of_test"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a module with a metric of the user's, as for a new process."""
    (tmp_path / "own").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "own")

    def write_metric(body: str) -> None:
        source = f"def m(prediction, references, example):\n    return {body}\n"
        (tmp_path / "own" / f"{OWN}.py").write_text(source)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        sys.modules.pop(OWN, None)

    return write_metric


def refuse_to_write(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model wrote")


@pytest.mark.slow
def test_a_changed_metric_measures_kept_text_again(
    run: Run,
    own: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stream, "WRITTEN_ROWS", 2)
    data, out = write(tmp_path / "d.jsonl", ROWS), tmp_path / "r.csv"
    args = ("--model", TIED, "--data", data, "--metrics", f"{OWN}:m,log_prob", "--out", out)
    real, written = stream.generate, []

    def stop(model: Any, rows: Any, options: Any, **more: Any) -> Any:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.extend(row for row, _ in rows)
        return real(model, rows, options, **more)

    monkeypatch.setattr(stream, "generate", stop)
    own("1.0")
    assert run(*args) == 130

    def go_on(model: Any, rows: Any, options: Any, **more: Any) -> Any:
        written.extend(row for row, _ in rows)
        return real(model, rows, options, **more)

    monkeypatch.setattr(stream, "generate", go_on)
    own("-float(prediction[-1])")
    assert run(*args) == 0
    assert written == [0, 1, 2, 3, 4, 5]
    assert f"measured again by {OWN}:m, 4 texts" in capsys.readouterr().err
    columns = read_evaluation(out)
    at = columns["metric"] == f"{OWN}:m"
    assert columns["value"][at].tolist() == [0, -1, -2, -3, -4, -5]  # "tied 0" and so on
    assert columns["metric"].tolist() == [f"{OWN}:m", "log_prob"] * 6
    assert not list(tmp_path.glob("*.parts"))


def test_a_metric_that_fails_marks_its_rows(
    run: Run,
    own: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = write(tmp_path / "d.jsonl", ROWS), tmp_path / "r.jsonl"
    args = ("--model", TIED, "--data", data, "--metrics", f"{OWN}:m,f1")
    own("1 / (float(prediction[-1]) % 3)")
    assert run(*args, "--out", out) == 0
    streams = capsys.readouterr()
    assert f"{data}, line 1: the metric {OWN}:m failed (ZeroDivisionError" in streams.err
    assert f"with --predictions {out}, once a model" in " ".join(streams.err.split())
    assert "in 2 of 6 rows the metric failed" in streams.out and "2 metric failed" in streams.out
    columns = read_evaluation(out)
    at = columns["metric"] == f"{OWN}:m"
    np.testing.assert_array_equal(columns["value"][at], [np.nan, 1, 0.5, np.nan, 1, 0.5])
    assert columns["status"][at].tolist() == ["failed=ZeroDivisionError", "ok", "ok"] * 2
    rejects = [*map(json.loads, (tmp_path / "r.jsonl.rejects.jsonl").read_text().splitlines())]
    assert [reject["row"] for reject in rejects] == ["line 1", "line 4"]
    # What was written is in the table, to be measured again without writing.
    monkeypatch.setattr(evaluate_run, "load_model", refuse_to_write)
    own("float(prediction[-1])")
    assert run(*args, "--predictions", out, "--out", out, "--overwrite") == 0
    columns = read_evaluation(out)
    at = columns["metric"] == f"{OWN}:m"
    assert columns["value"][at].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(columns["prediction"][at]) == {f"tied {i}" for i in range(6)}


@pytest.mark.parametrize("strict", [False, True])
def test_a_metric_that_leaves_no_table_leaves_the_text(
    run: Run,
    own: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    strict: bool,
) -> None:
    data, out = write(tmp_path / "d.jsonl", ROWS), tmp_path / "r.jsonl"
    args = ("--model", TIED, "--data", data, "--metrics", f"{OWN}:m", "--out", out)
    args = (*args, "--strict") if strict else args
    own("(lambda x: x if x != 2 else {}['no'])(float(prediction[-1]))" if strict else "exit(3)")
    assert run(*args) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert ("KeyError" if strict else "SystemExit") in err
    assert f"{OWN}:m on {1 if strict else 6} rows" in err and "line " in err
    assert "kept, and the same command measures it again" in err and not out.exists()
    monkeypatch.setattr(stream, "generate", refuse_to_write)
    own("float(prediction[-1])")
    assert run(*args) == 0
    assert read_evaluation(out)["value"].tolist() == [0, 1, 2, 3, 4, 5]


def test_files_of_predictions(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d.jsonl", [{"id": i, **ROWS[0]} for i in ("a", "b")])
    rows = [
        {"id": "a", "text": "1", "finish_reason": "length", "status": "truncated=7"},
        {"id": "b", "text": "9", "finish_reason": "stop_token", "status": "ok"},
        {"id": "c", "text": "9", "finish_reason": "stop_token", "status": "ok"},
        {"id": "e", "text": "9", "finish_reason": "stop_token", "status": "ok"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    args = ("--data", data, "--predictions", tmp_path / "s.parquet", "--metrics", "exact_match")
    assert run(*args, "--out", tmp_path / "r.csv") == 0
    columns = read_evaluation(tmp_path / "r.csv")
    assert columns["value"].tolist() == [1, 0]
    assert columns["status"].tolist() == ["truncated=7,cut_off", "ok"]
    streams = capsys.readouterr()
    assert "2 ids of the predictions of s are of no row of the data, the first 'c'" in streams.err
    assert "in 1 of 2 rows the response was cut off at the limit" in streams.out
    assert "in 1 of 2 rows the prompt was cut to fit" in streams.out


def test_a_reject_holds_the_whole_row(run: Run, tmp_path: Path) -> None:
    bad = {"instruction": "Say.", "instruction_id_list": ["no:such"], "kwargs": [{}]}
    data = write(tmp_path / "d.jsonl", [{"instruction": "Say."}, bad])
    file = write(tmp_path / "s.jsonl", [{"id": "d:1", "output": "x"}])
    args = ("--data", data, "--predictions", file, "--metrics", "ifeval,f1")
    assert run(*args, "--out", tmp_path / "r.csv") == 1
    good = {"instruction": "Say.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    data = write(tmp_path / "d.jsonl", [good, bad])
    assert run(*args, "--out", tmp_path / "r.csv") == 0
    (reject,) = [*map(json.loads, (tmp_path / "r.csv.rejects.jsonl").read_text().splitlines())]
    assert json.loads(reject["raw"])["instruction_id_list"] == ["no:such"]


@pytest.mark.parametrize(
    "args",
    [
        ["--metrics", "bleurt"],
        ["--metrics", ""],
        ["--metrics", "f1,f1"],
        ["--model", TIED],
        ["--predictions", "nowhere.jsonl", "--metrics", "f1"],
        ["--predictions", "nowhere.jsonl"],
        ["--max-new-tokens", "0", "--metrics", "f1"],
        ["--layout", "chat"],
    ],
)
def test_wrong_calls(run: Run, tmp_path: Path, args: list[str]) -> None:
    data = write(tmp_path / "d.jsonl", ROWS)
    assert run("--model", TIED, "--data", data, "--out", tmp_path / "r.csv", *args) == 2
    assert list(tmp_path.iterdir()) == [data]


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert "example: instructjax evaluate --data rows.jsonl" in capsys.readouterr().out


def test_a_fine_tuned_model_is_called_by_its_run(tmp_path: Path) -> None:
    from instructjax.cli.evaluate_names import name_specs

    for run in ("one", "two"):
        (tmp_path / run / "model").mkdir(parents=True)
    specs = [str(tmp_path / run / "model") for run in ("one", "two")]
    assert name_specs(tuple(specs)) == {"one": specs[0], "two": specs[1]}


@pytest.mark.slow
def test_a_mesh_changes_no_text_and_no_number(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", ROWS[:4])
    options = ["--model", TIED, "--metrics", "log_prob,rouge_l,chrf", "--max-new-tokens", "5"]
    tables = []
    for name, more in (("one", []), ("eight", ["--mesh", "data=4,fsdp=2"])):
        out = tmp_path / f"{name}.parquet"
        assert main(["evaluate", "--data", str(data), "--out", str(out), *options, *more]) == 0
        tables.append(pq.read_table(out).to_pylist())
    assert len(tables[0]) == 12 and any(row["prediction"] for row in tables[0])
    for one, eight in zip(*tables, strict=True):
        assert one["prediction"] == eight["prediction"]
        assert one.pop("value") == pytest.approx(eight.pop("value"), abs=1e-4)
        assert one == eight
