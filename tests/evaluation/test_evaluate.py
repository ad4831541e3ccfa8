"""`evaluate`: the values are those of score, rank and the metric functions; references; errors."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import instructjax as ij
from instructjax.errors import DataError, UsageError
from instructjax.evaluation import EVALUATION_SCHEMA, read_evaluation, stream, text_hash, token_f1
from instructjax.evaluation.generate import GenerateOptions
from instructjax.evaluation.given import find_given
from instructjax.evaluation.metrics import find_metrics
from instructjax.evaluation.plan import Plan
from instructjax.evaluation.written import Written
from instructjax.sampling import sample
from instructjax.scoring.api import make_encoder
from instructjax.scoring.runs.stream import Headway

EXAMPLES = [
    ij.Example(instruction="Add.", input="1 and 1", output=["2", "3", "4"], answer="2", id="a"),
    ij.Example(instruction="Add.", input="2 and 1", output=["2", "3", "4"], answer=1, id="b"),
    ij.Example(instruction="Say  it. ", input="", output=["It", "It!"], task="say"),
]


def pick(found: Any, metric: str) -> np.ndarray:
    return found.columns["value"][found.columns["metric"] == metric]


def test_scores_are_those_of_score_and_rank(tiny_model: Any) -> None:
    metrics = ["log_prob", "log_prob_per_token", "rank_accuracy"]
    found = ij.evaluate(tiny_model, EXAMPLES, metrics, progress=False)
    scores = ij.score(tiny_model, EXAMPLES, progress=False)
    sums, lengths = scores.log_prob, scores.num_tokens
    # The answer where it is known; else the best of the references.
    expected = [sums[0], sums[4], max(sums[6], sums[7])]
    np.testing.assert_allclose(pick(found, "log_prob"), expected, atol=1e-4)
    each = sums / lengths
    expected = [each[0], each[4], max(each[6], each[7])]
    np.testing.assert_allclose(pick(found, "log_prob_per_token"), expected, atol=1e-5)
    ranking = ij.rank(tiny_model, EXAMPLES[:2], progress=False)
    np.testing.assert_array_equal(
        pick(found, "rank_accuracy"), [*(float(bool(x.correct)) for x in ranking), math.nan]
    )
    columns = found.columns
    assert columns["id"][::3].tolist() == ["a", "b", "row 3"]
    assert columns["num_references"].tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 0]
    assert columns["status"][-1] == "no_answer" and set(columns["status"][:-1]) == {"ok"}
    assert columns["instruction_hash"][0] == columns["instruction_hash"][3] == text_hash("Add.")
    assert columns["instruction_hash"][6] == text_hash("Say it.") != columns["instruction_hash"][0]
    assert columns["task"][-1] == "say" and columns["task"][0] == ""


def test_given_predictions_and_samples(tiny_model: Any) -> None:
    texts = ["2", ["2", "3"], "it it"]
    found = ij.evaluate(
        tiny_model, EXAMPLES, ["exact_match", "f1"], predictions=texts, progress=False
    )
    # The answer alone counts where it is known: "2" is a candidate of the second, and wrong.
    assert pick(found, "exact_match").tolist() == [1.0, 0.5, 0.0]
    assert pick(found, "f1")[2] == token_f1("it it", ["It", "It!"]) == pytest.approx(2 / 3)
    assert found.columns["status"].tolist() == ["ok", "ok", "samples=2", "samples=2", "ok", "ok"]
    assert found.columns["prediction"].tolist() == ["2", "2", "2", "2", "it it", "it it"]


@pytest.mark.slow
def test_what_the_model_writes_is_what_is_judged(tiny_model: Any) -> None:
    found = ij.evaluate(
        tiny_model, EXAMPLES, ["chrf", "log_prob"], max_new_tokens=4, progress=False
    )
    samples = sample(tiny_model, EXAMPLES, max_new_tokens=4, temperature=0.0, progress=False)
    written = found.columns["prediction"][found.columns["metric"] == "chrf"].tolist()
    assert written == [row.text for row in samples]
    assert set(found.columns["prediction"][found.columns["metric"] == "log_prob"]) == {None}
    assert found.metadata["decoding"] == "greedy" and found.metadata["max_new_tokens"] == "4"


def test_two_models_are_paired(tiny_model: Any, random_model: Any) -> None:
    other = random_model(seed=1, vocab_size=tiny_model.config.vocab_size)
    found = ij.evaluate({"a": tiny_model, "b": other}, EXAMPLES, ["log_prob"], progress=False)
    values = found.columns["value"].reshape(2, 3)
    (one,) = found.differences
    assert one.difference == pytest.approx((values[1] - values[0]).mean())
    assert one.num_instructions == 2 and found.mean("log_prob", "b") == values[1].mean()
    alone = ij.evaluate(other, EXAMPLES, ["log_prob"], progress=False)
    np.testing.assert_allclose(alone.columns["value"], values[1], atol=1e-4)
    assert "b - a log_prob" in repr(found)
    with pytest.raises(UsageError, match="llama-tied, llama-tied"):
        ij.evaluate([tiny_model, tiny_model], EXAMPLES)


def test_constraints_of_ifeval(tiny_model: Any) -> None:
    row = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
        "cell": "seen_c_unseen_z",
    }
    foreign = {"instruction_id_list": ["language:response_language", "punctuation:no_comma"]}
    examples = [
        ij.Example(instruction="Say.", extra=row),
        ij.Example(instruction="Say."),
        ij.Example(instruction="Dis.", extra=foreign),
    ]
    texts = ['Well\n"No."', "x", "Oui"]
    found = ij.evaluate(tiny_model, examples, "ifeval", predictions=texts, progress=False)
    nan = math.nan
    expected = {
        "ifeval_prompt_strict": [0.0, nan, nan],
        "ifeval_prompt_loose": [1.0, nan, nan],
        "ifeval_instruction_strict": [0.5, nan, 1.0],
        "ifeval_instruction_loose": [1.0, nan, 1.0],
    }
    for metric, values in expected.items():
        np.testing.assert_array_equal(pick(found, metric), values)
    assert found.mean("ifeval_instruction_strict") == pytest.approx(2 / 3)  # of 3 constraints
    assert found.columns["cell"][0] == "seen_c_unseen_z"
    assert set(found.columns["status"][4:8]) == {"no_constraints"}
    assert found.columns["status"][8] == "unchecked=language:response_language"


def test_a_metric_of_the_user(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metrics_x.py").write_text(
        "def length(prediction, references, example):\n"
        "    return len(prediction) + 100 * len(references) + example.extra.get('bonus', 0)\n"
        "def broken(prediction, references, example):\n"
        "    return {}['no']\n"
        "def nothing(prediction, references, example):\n"
        "    return None\n"
        "def huge(prediction, references, example):\n"
        "    return 10**400\n"
        "def vast(prediction, references, example):\n"
        "    return 10**5000\n"
        "def leaves(prediction, references, example):\n"
        "    raise SystemExit(3)\n"
        "def sometimes(prediction, references, example):\n"
        "    return 1 / (prediction != 'x')\n"
    )
    (tmp_path / "my_script_x.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    texts = ["abc", "", "x"]

    def run(metric: Any) -> Any:
        return ij.evaluate(tiny_model, EXAMPLES, [metric], predictions=texts, progress=False)

    found = run("my_metrics_x:length")
    assert pick(found, "my_metrics_x:length").tolist() == [103.0, 100.0, 201.0]
    for name, message, status in (
        ("broken", "KeyError", "failed=KeyError"),
        ("nothing", "gave None", "failed"),
        ("huge", r"gave 1000000.*\.\.\.", "failed"),
        ("vast", "gave a value of type int", "failed"),
        ("leaves", "SystemExit", "failed=SystemExit"),
    ):
        with pytest.warns(UserWarning, match=f"for 3 of 3.*a: the metric.*{message}"):
            found = run(f"my_metrics_x:{name}")
        assert np.isnan(found.columns["value"]).all()
        assert found.columns["status"].tolist() == [status] * 3
        assert "in 3 of 3 rows the metric failed" in repr(found)
    with pytest.warns(UserWarning, match="1 of 3 examples; the first, row 3"):
        found = run("my_metrics_x:sometimes")
    np.testing.assert_array_equal(found.columns["value"], [1.0, 1.0, math.nan])
    for spec, message in (
        ("my_metrics_x:gone", "no function 'gone'"),
        ("no_such_module_x:f", "cannot be imported"),
        ("my_script_x:f", r"cannot be imported \(SystemExit: 3\)"),
        ("bleurt", "no metric 'bleurt'"),
    ):
        with pytest.raises(UsageError, match=message):
            run(spec)

    def upper(prediction: str, references: list[str], example: ij.Example) -> bool:
        return prediction.isupper()

    assert pick(run(upper), "upper").tolist() == [0.0, 0.0, 0.0]
    found = ij.evaluate(tiny_model, EXAMPLES, upper, predictions=texts, progress=False)
    assert pick(found, "upper").tolist() == [0.0, 0.0, 0.0]


def test_saved_and_read_again(tiny_model: Any, tmp_path: Path) -> None:
    found = ij.evaluate(
        tiny_model,
        EXAMPLES,
        ["rank_accuracy", "rouge_l"],
        predictions=["2", 'a "quoted",\nline', ""],
        progress=False,
    )
    assert found.to_arrow().schema.names == EVALUATION_SCHEMA.names
    assert list(found.to_pandas().columns) == EVALUATION_SCHEMA.names
    for suffix in ("parquet", "jsonl", "csv"):
        path = tmp_path / f"r.{suffix}"
        found.save(path)
        columns = read_evaluation(path)
        assert list(columns) == EVALUATION_SCHEMA.names
        for name, column in found.columns.items():
            if suffix == "csv" and name == "prediction":  # there, empty and missing look alike
                column = np.array([x or None for x in column], object)
            np.testing.assert_array_equal(columns[name], column, err_msg=f"{suffix} {name}")
    with pytest.raises(DataError, match="evaluation table"):
        (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
        read_evaluation(tmp_path / "bad.jsonl")


def test_tables_of_other_tools_need_four_columns(tmp_path: Path) -> None:
    row = {"model": "m", "id": 7, "metric": "f1", "value": 0.5}
    lines = [row, row | {"id": "b", "value": None, "num_references": None, "status": None}]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = read_evaluation(path)
    assert columns["id"].tolist() == ["7", "b"] and columns["task"].tolist() == ["", ""]
    np.testing.assert_array_equal(columns["value"], [0.5, np.nan])
    assert columns["num_references"].tolist() == [0, 0] and columns["status"].tolist() == ["", ""]
    table = pa.Table.from_pylist([row | {"id": "a"}, row | {"id": "b"}])
    pq.write_table(table, tmp_path / "r.parquet")
    assert read_evaluation(tmp_path / "r.parquet")["instruction_id"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"value": "good"}, "row 2: value is 'good'"),
        ({"task": ["a"]}, r"row 2: task is \['a'\]"),
        ({"model": None}, "row 2: there is no model"),
    ],
)
def test_a_row_that_is_none_is_named(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    row = {"model": "m", "id": "a", "metric": "f1", "value": 0.5}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | wrong) + "\n")
    with pytest.raises(DataError, match=rf"r\.jsonl, {says}"):
        read_evaluation(path)


def test_an_example_that_cannot_be_used_is_named(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ij.Example(instruction="Add.", output=["1", "2"], answer="9", id="odd")
    with pytest.raises(DataError, match="odd: the answer '9' is none"):
        ij.evaluate(tiny_model, [*EXAMPLES, bad], progress=False)
    with pytest.raises(UsageError, match="2 predictions of llama-tied for 3 examples"):
        ij.evaluate(tiny_model, EXAMPLES, ["f1"], predictions=["a", "b"])
    with pytest.raises(UsageError, match="needs prompts of its own"):
        ij.evaluate(tiny_model, EXAMPLES, ["rank_accuracy"], normalization="pmi")
    with pytest.raises(UsageError, match="each once"):
        ij.evaluate(tiny_model, EXAMPLES, ["f1", "f1"])

    def refuse(model: Any, rows: Any, options: Any, **_: Any) -> list[Written]:
        if any(example.id == "b" for _, example in rows):
            raise DataError("too long", row="b")
        return [Written(text="2")] * len(rows)

    monkeypatch.setattr(stream, "generate", refuse)
    with pytest.raises(DataError, match="b: too long"):
        ij.evaluate(tiny_model, EXAMPLES, ["f1"], progress=False)


def test_text_that_was_cut_is_flagged(tiny_model: Any) -> None:
    long = ij.Example(instruction="Name it. " * 100, output="x", id="long")
    rows = [*EXAMPLES, long]
    written = sample(
        tiny_model, rows, max_new_tokens=20, truncation="left", temperature=0, progress=False
    )
    (end,) = {text[4:6] for text in written.text[:1]}
    stopped = [text.find(end) >= 0 for text in written.text]
    assert stopped[0] and not all(stopped)
    options: dict[str, Any] = {"max_new_tokens": 20, "truncation": "left", "progress": False}
    found = ij.evaluate(tiny_model, rows, ["log_prob", "f1"], stop=end, **options)
    status = found.columns["status"].reshape(4, 2)
    for row, (done, (scored, read)) in enumerate(zip(stopped, status, strict=True)):
        flags = read.split(",")
        assert ("cut_off" in flags) == (not done)
        assert any(flag.startswith("truncated=") for flag in flags) == (row == 3)
        assert scored.startswith("truncated=") == (row == 3)
    counts = {one.flag: one for one in found.flagged if one.metrics == ("f1",)}
    assert counts["cut_off"].num_examples == 4 - sum(stopped)
    assert f"in {4 - sum(stopped)} of 4 rows the response was cut off at the limit" in repr(found)
    assert "in 1 of 4 rows the prompt was cut to fit" in repr(found)
    # A single stop string is one, and not its characters.
    texts = [text.partition(end)[0] for text in written.text]
    assert found.columns["prediction"].reshape(4, 2)[:, 1].tolist() == texts
    assert found.metadata["stop"] == repr(end)


def test_text_of_a_model_that_is_not_finite_has_no_value(tiny_model: Any) -> None:
    params = jax.tree.map(lambda x: x * np.nan if x.ndim > 1 else x, tiny_model.params)
    broken = dataclasses.replace(tiny_model, params=params)
    found = ij.evaluate(broken, EXAMPLES[:1], ["log_prob", "f1"], max_new_tokens=2, progress=False)
    assert np.isnan(found.columns["value"]).all()
    assert all("not_finite" in status for status in found.columns["status"])


def test_samples_are_predictions(tiny_model: Any) -> None:
    samples = sample(tiny_model, EXAMPLES, max_new_tokens=3, num_samples=2, progress=False)
    ends = [[row.finish_reason for row in samples if row.id == name] for name in ("a", "b")]
    found = ij.evaluate(tiny_model, EXAMPLES, "f1", predictions=samples, progress=False)
    assert [found.columns["prediction"][i] for i in range(3)] == samples.text[::2]
    for status, reasons in zip(found.columns["status"], ends, strict=False):
        cut = reasons.count("length")
        assert status == ("samples=2" + (f",cut_off={cut}" if cut else ""))
    with pytest.raises(UsageError, match="are of b where the example is a"):
        ij.evaluate(tiny_model, EXAMPLES[:1], "f1", predictions=samples[2:4])
    with pytest.raises(UsageError, match="3 predictions of llama-tied for 1 examples"):
        ij.evaluate(tiny_model, EXAMPLES[:1], "f1", predictions=samples)
    found = ij.evaluate(tiny_model, EXAMPLES[0], "f1", predictions="2", progress=False)
    assert found.columns["value"].tolist() == [1.0]


@pytest.mark.parametrize("wrong", [[None], [3], [b"a"], [["a", None]], [{"a": 1}]])
def test_predictions_that_are_no_texts_are_named(wrong: list[Any]) -> None:
    with pytest.raises(UsageError, match="^a: its prediction is .*, no text; give one text"):
        find_given(wrong, ["m"], EXAMPLES[:1])
    with pytest.raises(UsageError, match="predictions of m are 3"):
        find_given(3, ["m"], EXAMPLES[:1])


def test_the_bar_follows_rows_as_they_are_written(tiny_model: Any) -> None:
    headway, seen = Headway(), []
    rows = [ij.Example(instruction=f"Say {i}.", output="x") for i in range(5)]
    plan = Plan(metrics=find_metrics("f1"), generation=GenerateOptions(max_new_tokens=3))
    chunks = stream.evaluate_chunks(
        tiny_model, "m", rows, plan, headway=headway, on_progress=lambda: seen.append(headway.rows)
    )
    assert [chunk.stop for chunk in chunks] == [5]
    assert seen == sorted(seen) and set(seen) == {0, 1, 2, 3, 4, 5}


def test_text_that_cannot_be_written_leaves_scores(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any, rows: Any, options: Any, **_: Any) -> list[Written]:
        raise DataError("no room")

    monkeypatch.setattr(stream, "generate", refuse)
    plan = Plan(metrics=find_metrics("log_prob,f1"))
    encoder = make_encoder(tiny_model)
    (chunk,) = stream.evaluate_chunks(tiny_model, "m", EXAMPLES[:1], plan, encoder=encoder)
    by_metric = {record["metric"]: record for record in chunk.records}
    expected = ij.score(tiny_model, EXAMPLES[:1], progress=False).log_prob[0]
    assert by_metric["log_prob"]["value"] == pytest.approx(expected, abs=1e-4)
    assert by_metric["f1"]["status"] == "cannot_be_used" and len(chunk.failures) == 1
