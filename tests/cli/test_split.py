"""`instructjax split`: files, order, leaks, presets, and how it fails."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.main import main
from instructjax.data import Example, read_examples
from instructjax.generalization.official_split import read_task_split
from instructjax.generalization.split_recipes import CELLS


def make_rows() -> list[dict[str, Any]]:
    rng = random.Random(0)
    words = [f"word{k}" for k in range(3_000)]
    return [
        {
            "id": f"{t}-{c}-{z}",
            "instruction": f"Task {t} {'please ' * c}now.",
            "input": f"{t} {z} " + " ".join(rng.sample(words, 15)),
            "output": ["yes", "no"],
            "task": f"task{t}",
            "category": f"category{t // 2}",
        }
        for t in range(8)
        for z in range(6)
        for c in range(2)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["instruction", "task", "category", "paraphrase", "compositional"])
def test_every_level_gives_a_split_that_holds_together(tmp_path: Path, by: str) -> None:
    data, out = write(tmp_path / "rows.jsonl", make_rows()), tmp_path / "split"
    assert main(["split", str(data), "--by", by, "--out", str(out)]) == 0
    train, evaluated = read(out / "train.jsonl"), read(out / "eval.jsonl")
    seen_c = {row["instruction"] for row in train}
    seen_z = {row["input"] for row in train}
    ids = {row["id"] for row in train}
    for row in evaluated:
        k = 2 * (row["instruction"] not in seen_c) + (row["input"] not in seen_z)
        assert row["cell"] == CELLS[k]
        assert (row["id"] in ids) == (k == 0)
    told = json.loads((out / "split.json").read_text())
    assert told["train"]["rows"] == len(train) and told["recipe"]["by"] == by
    assert sum(counts["rows"] for counts in told["eval"].values()) == len(evaluated)
    # Both files are data that the other verbs read.
    for name in ("train.jsonl", "eval.jsonl"):
        assert all(isinstance(row, Example) for row in read_examples(out / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "split"]


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    rows = make_rows()
    outs = []
    for name in ("one", "other"):
        random.Random(name).shuffle(rows)
        data = write(tmp_path / f"{name}.jsonl", rows)
        outs.append(tmp_path / name)
        assert (
            main(["split", str(data), "--by", "task", "--seed", "3", "--out", str(outs[-1])]) == 0
        )
    for file in ("train.jsonl", "eval.jsonl", "leaks.jsonl", "split.json"):
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes()


def test_words_that_are_not_known_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every input has words of its own; the paper's divergence of atoms, counted here by hand."""
    data, out = write(tmp_path / "rows.jsonl", make_rows()), tmp_path / "split"
    command = ["split", "--by", "compositional", "--fraction-unseen-instructions", "0"]
    assert main([*command, str(data), "--out", str(out)]) == 0
    inputs = {row["input"] for row in make_rows()}
    seen = inputs & {row["input"] for row in read(out / "train.jsonl")}
    p, q = (Counter(w for z in side for w in z.split()) for side in (seen, inputs - seen))
    expected = 1 - sum((p[w] / p.total() * q[w] / q.total()) ** 0.5 for w in p)
    told = json.loads((out / "split.json").read_text())["compositional"]
    assert told["atom_divergence"] == pytest.approx(expected, abs=1e-6)
    assert f"atom divergence {expected:.2f}, where 0.02 is allowed" in capsys.readouterr().err
    rows = make_rows()
    for number, row in enumerate(rows):
        row["input"] = " ".join("one" if number >> k & 1 else "two" for k in range(7))
    known = write(tmp_path / "known.jsonl", rows)
    assert main([*command, str(known), "--out", str(tmp_path / "known")]) == 0
    assert "atom divergence" not in capsys.readouterr().err


@pytest.mark.parametrize("side", ["input", "instruction"])
def test_equal_lengths_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    rows = [
        {"instruction": f"say {c}", "input": f"word {z} here", "output": "y"}
        for c in range(5)
        for z in range(5)
    ]
    command = ["split", str(write(tmp_path / "rows.jsonl", rows)), "--by", "compositional"]
    command += ["--method", "length", "--side", side, "--out", str(tmp_path / "split")]
    assert main(command) == 1
    words = {"input": 3, "instruction": 2}[side]
    assert f"all {side}s have the same length, {words} words" in capsys.readouterr().err
    assert not (tmp_path / "split").exists()


def plant(tmp_path: Path) -> tuple[Path, str]:
    """Rows of which an unseen input is a training input with one word added; its id."""
    rows, out = make_rows(), tmp_path / "plain"
    data = write(tmp_path / "rows.jsonl", rows)
    assert main(["split", str(data), "--by", "task", "--out", str(out)]) == 0
    new = next(row for row in read(out / "eval.jsonl") if row["cell"] == CELLS[3])
    known = read(out / "train.jsonl")[0]
    for row in rows:
        if row["input"] == new["input"]:
            row["input"] = known["input"] + " indeed"
    return write(tmp_path / "planted.jsonl", rows), known["input"]


def test_leaks_are_told_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, source = plant(tmp_path)
    # Other rows have moved to other cells where the planted text's hash differs: look at what is.
    for action in ("report", "remove"):
        out = tmp_path / action
        command = ["split", str(data), "--by", "task", "--fraction-unseen-inputs", "0.0"]
        assert main([*command, "--leaks", action, "--out", str(out)]) == 0
    told = [leak for leak in read(tmp_path / "report" / "leaks.jsonl") if leak["side"] == "input"]
    assert len(told) == 1 and source in (told[0]["train_text"], told[0]["text"])
    assert {"13-gram", "8-gram cover", "near duplicate"} == set(told[0]["kinds"])
    train = {row["id"]: row for row in read(tmp_path / "report" / "train.jsonl")}
    evaluated = {row["id"]: row for row in read(tmp_path / "report" / "eval.jsonl")}
    assert train[told[0]["train_id"]]["input"][:300] == told[0]["train_text"]
    assert evaluated[told[0]["id"]]["input"][:300] == told[0]["text"]
    left = {row["id"] for row in read(tmp_path / "remove" / "eval.jsonl")}
    leaked_inputs = {told[0]["text"]}
    unseen = {id for id, row in evaluated.items() if row["cell"] != CELLS[0]}
    gone = {id for id in unseen if evaluated[id]["input"] in leaked_inputs}
    assert gone and not gone & left
    rejects = read(tmp_path / "remove.rejects.jsonl")
    assert gone <= {reject["row"] for reject in rejects}
    assert all(reject["reason"].startswith("leak: ") for reject in rejects)
    assert "leaks: 1 of" in capsys.readouterr().out


def test_official_preset(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", make_rows())
    lists = {
        "split.jsonl": "".join(
            json.dumps({"task": f"task{t}", "split": ("test" if t < 2 else "train")}) + "\n"
            for t in range(7)
        ),
        "tests.txt": "task0\ntask1\n",
    }
    for name, text in lists.items():
        file, out = tmp_path / name, tmp_path / f"{name}.out"
        file.write_text(text)
        command = ["split", str(data), "--preset", "superni-official", "--split-file", str(file)]
        assert main([*command, "--out", str(out)]) == 0
        evaluated = read(out / "eval.jsonl")
        unseen = {row["task"] for row in evaluated if row["cell"].startswith("unseen_c")}
        assert unseen == {"task0", "task1"}
        tasks = {row["task"] for row in read(out / "train.jsonl")}
        assert tasks == {f"task{t}" for t in range(2, 7 if name == "split.jsonl" else 8)}
    # task7 is in no list: it is rejected, not dropped in silence.
    rejects = read(tmp_path / "split.jsonl.out.rejects.jsonl")
    assert len(rejects) == 12 and rejects[0]["reason"].startswith("not in the split")


def test_one_instruction_is_split_by_its_inputs(tmp_path: Path) -> None:
    """The book's intra-task setting: c* is fixed, and there is no unseen instruction to compare."""
    rows = [row | {"instruction": "Say it.", "task": None} for row in make_rows()]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "split"
    assert main(["split", str(data), "--out", str(out)]) == 0
    assert {row["cell"] for row in read(out / "eval.jsonl")} == set(CELLS[:2])
    told = json.loads((out / "split.json").read_text())
    assert told["leaks"]["instruction"]["compared"] == 0


@pytest.mark.parametrize(
    ("by", "name"), [("task", "task"), ("paraphrase", "task"), ("category", "category")]
)
def test_a_split_by_names_needs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str, name: str
) -> None:
    """Rows without a category are no categories of their own in silence."""
    rows, out = make_rows(), tmp_path / "split"
    data = write(tmp_path / "none.jsonl", [row | {name: None} for row in rows])
    assert main(["split", str(data), "--by", by, "--out", str(out)]) == 1
    assert f"no row has a `{name}`" in capsys.readouterr().err and not out.exists()
    some = [row | ({name: None} if k < 12 else {}) for k, row in enumerate(rows)]
    data = write(tmp_path / "some.jsonl", some)
    assert main(["split", str(data), "--by", by, "--out", str(out)]) == 0
    assert f"12 rows have no `{name}`" in capsys.readouterr().err


def test_rows_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    rows = [*make_rows(), {"id": "x", "instruction": "c"}, {"prompt_ids": [1], "output_ids": [2]}]
    rows.append({"instruction": " ", "input": "no c", "output": "y", "task": "task0"})
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "split"
    assert main(["split", str(data), "--out", str(out)]) == 0
    reasons = [row["reason"].partition(":")[0] for row in read(tmp_path / "split.rejects.jsonl")]
    assert sorted(reasons) == ["no instruction", "no response", "token ids"]
    split = [*read(out / "train.jsonl"), *read(out / "eval.jsonl")]
    assert "no c" not in {row["input"] for row in split}


def test_official_preset_finds_the_lists_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    data = write(tmp_path / "tasks" / "rows.jsonl", make_rows()).parent
    command = ["split", str(data), "--preset", "superni-official", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    lists = tmp_path / "splits" / "default"
    lists.mkdir(parents=True)
    (lists / "test_tasks.txt").write_text("task0\ntask1\n")
    (lists / "train_tasks.txt").write_text("task2\ntask3\n\ntask4\n")
    assert main(command) == 0
    tasks = {row["task"] for row in read(tmp_path / "out" / "train.jsonl")}
    assert tasks == {"task2", "task3", "task4"}
    assert len(read(tmp_path / "out.rejects.jsonl")) == 3 * 12  # of tasks that are in no list
    (lists / "train_tasks.txt").write_text("task1\n")
    named = [*command[:-1], str(tmp_path / "other"), "--split-file", str(lists)]
    assert main(named) == 1


@pytest.mark.parametrize("name", ["list.txt", "list.json", "list.jsonl"])
def test_lists_as_windows_writes_them(tmp_path: Path, name: str) -> None:
    """With a byte order mark, which is no part of the first task's name."""
    data, file = write(tmp_path / "rows.jsonl", make_rows()), tmp_path / name
    text = {
        "list.txt": "task0\r\ntask1\r\n",
        "list.json": '{"task0": "test", "task1": "test"}',
        "list.jsonl": '{"task": "task0", "split": "test"}\r\n{"task": "task1", "split": "test"}',
    }[name]
    file.write_bytes(text.encode("utf-8-sig"))
    command = ["split", str(data), "--preset", "superni-official", "--split-file", str(file)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    tasks = {row["task"] for row in read(tmp_path / "out" / "train.jsonl")}
    assert tasks == {f"task{t}" for t in range(2, 8)}
    assert read_task_split(file) == {"task0": True, "task1": True}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--fraction-unseen-inputs", "2"], 2, "fraction_unseen_inputs is 2.0"),
        (["--preset", "superni-official"], 2, "needs the lists"),
        (["--split-file", "x.txt"], 2, "goes with --preset"),
        (["--fraction-unseen-inputs", "0", "--fraction-unseen-instructions", "0"], 1, "unseen"),
        (["--by", "author"], 2, "author"),
    ],
)
def test_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    data, out = write(tmp_path / "rows.jsonl", make_rows()), tmp_path / "split"
    assert main(["split", str(data), *words, "--out", str(out)]) == code
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", make_rows()), tmp_path / "split"
    command = ["split", str(data), "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    (out / "notes.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert (out / "notes.txt").read_text() == "mine"
