"""The right one among several responses: from a column, and from BIG-bench's target scores."""

import json
from typing import Any

import pytest

from instructjax.data import Example, Reject, read_examples
from instructjax.errors import UsageError

ROW = {"instruction": "Pick.", "output": ["a", "b"]}


def read(path, *rows, **options) -> list[Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_examples(path, **options))


def answers(found) -> list[Any]:
    return [row.answer if isinstance(row, Example) else row.reason for row in found]


def test_indices_texts_and_none(tmp_path):
    values = [1, 0, "b", "1", 1.0, None, float("nan"), ""]
    found = read(tmp_path / "d.jsonl", *({**ROW, "answer": value} for value in values), ROW)
    assert answers(found) == [1, 0, "b", "1", 1, None, None, None, None]


def test_a_column_of_another_meaning_is_kept_as_text_unless_it_is_asked_for(tmp_path):
    rows = [{**ROW, "answer": value} for value in ([1], {"text": "b"}, True, 0.5)]
    assert answers(read(tmp_path / "d.jsonl", *rows)) == [
        "[1]",
        "{'text': 'b'}",
        "True",
        "0.5",
    ]
    found = read(tmp_path / "d.jsonl", *rows, fields={"answer": "answer"})
    assert all(isinstance(row, Reject) for row in found)
    assert all("wrong type: `answer`" in reason for reason in answers(found))


def test_a_mapped_answer_leaves_the_format_as_it_is(tmp_path):
    row = {"Definition": ["Pick."], "input": "x", "output": ["a", "b"], "gold": {"index": 1}}
    found = read(tmp_path / "d.jsonl", row, fields={"answer": "gold.index"})
    assert found[0].instruction == "Pick." and found[0].answer == 1
    forced = read(tmp_path / "d.jsonl", row, format="superni", fields={"answer": "gold.index"})
    assert forced == found
    with pytest.raises(UsageError, match="no column 'nowhere'"):
        read(tmp_path / "d.jsonl", row, fields={"answer": "nowhere"})


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        ({"a": 0, "b": 1}, 1),
        ({"a": 0.5, "b": 0.25}, 0),
        ({"a": 1, "b": 1}, None),
        ({"a": 0, "b": "1"}, None),
    ],
)
def test_target_scores(tmp_path, scores, answer):
    task = {
        "name": "t",
        "description": "Pick.",
        "examples": [{"input": "x", "target_scores": scores}],
    }
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task))
    found: Any = next(read_examples(path))
    assert (found.output, found.answer) == (("a", "b"), answer)


def test_an_answer_is_part_of_an_example():
    assert Example(output=["a", "b"], answer=1) != Example(output=["a", "b"])
