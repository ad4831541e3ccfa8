"""Rows without a response, further columns, and the format of IFEval."""

from __future__ import annotations

import json
from pathlib import Path

from instructjax.data import Example, Reject, read_examples

ROWS = [
    {"instruction": "Add.", "input": "1 + 1", "cell": "seen_c_seen_z"},
    {"instruction": "Add.", "output": ""},
    {"input": "", "instruction": ""},
    {"prompt_ids": [1, 2]},
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_to_answer(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", ROWS)
    first, second, third, fourth = read_examples(file, needs_output=False, keep_extra=True)
    assert isinstance(first, Example) and first.outputs == ()
    assert first.extra == {"cell": "seen_c_seen_z"}
    assert isinstance(second, Example) and second.output is None
    assert isinstance(third, Reject) and third.kind == "no instruction and no input"
    assert isinstance(fourth, Example) and fourth.prompt_ids == (1, 2)
    # Who needs responses is told that there are none, and further columns are not kept unasked.
    rows = read_examples(write(tmp_path / "e.jsonl", [*ROWS, {**ROWS[0], "output": "2"}]))
    *missing, good = rows
    assert all(isinstance(row, Reject) for row in missing)
    assert isinstance(good, Example) and good.extra == {}


def test_ifeval(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "Write.", "instruction_id_list": ["a:b"], "kwargs": [{}]}
    (one,) = read_examples(write(tmp_path / "d.jsonl", [row]), needs_output=False, keep_extra=True)
    assert isinstance(one, Example)
    assert (one.id, one.instruction, one.outputs) == ("7", "Write.", ())
    assert one.extra["instruction_id_list"] == ["a:b"]
