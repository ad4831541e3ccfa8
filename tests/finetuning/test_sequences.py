"""Rows to training sequences: what is learned of each, and what happens to those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructjax.data import Example, Reject
from instructjax.errors import DataError
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.sequences import (
    NothingUsable,
    Sequences,
    choose_output,
    join_sequences,
    read_sequences,
)
from instructjax.scoring.api import make_encoder


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(
    model: Any, file: Path, *, length: int = 60, truncation: str = "error", **options: Any
) -> tuple[Sequences, list[Reject]]:
    config = FinetuneConfig(data=(file,), out=Path("run"), **options)
    encoder = make_encoder(model, max_length=length, truncation=truncation, turns=config.turns)
    rejects: list[Reject] = []
    weight = config.prompt_loss_weight
    found = read_sequences(file, encoder, config, reject=rejects.append, prompt_loss_weight=weight)
    return found, rejects


def learned(model: Any, sequences: Sequences, index: int) -> str:
    """The text of the tokens that have a weight."""
    one = sequences[index]
    return model.tokenizer.decode(one.ids[one.weights > 0].tolist())


def test_y_and_its_end_are_learned_and_nothing_else(tmp_path: Path, tiny_model: Any) -> None:
    rows = [{"instruction": "Say.", "input": "z", "output": "y 1", "task": "t"}]
    found, rejects = read(tiny_model, write(tmp_path, rows))
    # pad is eos in this model: a mask by token would lose the end.
    assert learned(tiny_model, found, 0) == "y 1<|im_end|>"
    assert not rejects and found.cells == ("t",)
    assert found.places == (f"{tmp_path / 'rows.jsonl'}, line 1",)
    assert found.sizes.tolist() == [len(found.ids) - 1]


def test_rows_that_cannot_be_used_are_told_with_place_and_reason(
    tmp_path: Path, tiny_model: Any
) -> None:
    rows = [
        {"instruction": "Say.", "output": "y"},
        {"instruction": "Say.", "output": ""},
        {"instruction": "Say.", "output": "9 " * 100},
        {"instruction": "Say.", "output": ["a", "b"], "answer": "c"},
        {"instruction": "Say.", "output": "z"},
    ]
    found, rejects = read(tiny_model, write(tmp_path, rows))
    assert [learned(tiny_model, found, i)[0] for i in range(2)] == ["y", "z"]
    assert [reject.row for reject in rejects] == ["line 2", "line 3", "line 4"]
    assert rejects[0].reason.startswith("no response")
    assert "tokens, more than 60; raise row_length" in rejects[1].reason
    assert "the answer 'c' is none of the 2 responses" in rejects[2].reason


def test_prompts_are_cut_only_if_asked_and_y_never(tmp_path: Path, tiny_model: Any) -> None:
    rows = [{"instruction": "Say. " + "x " * 100, "output": "y 1"}]
    file = write(tmp_path, rows)
    with pytest.raises(NothingUsable, match="none of its 1 rows can be used"):
        read(tiny_model, file)
    found, _ = read(tiny_model, file, truncation="left")
    assert found.sizes.tolist() == [59]
    assert learned(tiny_model, found, 0) == "y 1<|im_end|>"


def test_the_first_of_several_outputs_or_each_or_the_right_one(
    tmp_path: Path, tiny_model: Any
) -> None:
    rows = [
        {"instruction": "Say.", "output": ["a", "b", "c"]},
        {"instruction": "Say.", "output": ["d", "e"], "answer": 1},
    ]
    file = write(tmp_path, rows)
    first, _ = read(tiny_model, file)
    assert [learned(tiny_model, first, i)[0] for i in range(len(first))] == ["a", "e"]
    each, _ = read(tiny_model, file, references="all")
    assert [learned(tiny_model, each, i)[0] for i in range(len(each))] == ["a", "b", "c", "e"]


def test_choosing_among_ids() -> None:
    example = Example(prompt_ids=[1], output_ids=[[2], [3]], answer=1)
    assert list(choose_output(example).output_ids or ()) == [3]
    with pytest.raises(DataError, match="none of the 2 responses"):
        choose_output(Example(prompt_ids=[1], output_ids=[[2], [3]], answer=2))


def test_all_turns_of_a_conversation(tmp_path: Path, tiny_model: Any) -> None:
    turns = ["Hi", "A", "More", "B"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    file = write(tmp_path, [{"messages": messages}])
    last, _ = read(tiny_model, file)
    assert learned(tiny_model, last, 0) == "B<|im_end|>"
    every, _ = read(tiny_model, file, turns="all")
    assert learned(tiny_model, every, 0) == "A<|im_end|>B<|im_end|>"


def test_the_prompt_may_count_a_little(tmp_path: Path, tiny_model: Any) -> None:
    file = write(tmp_path, [{"instruction": "Say.", "output": "y"}])
    found, _ = read(tiny_model, file, prompt_loss_weight=0.25)
    weights = found[0].weights.tolist()
    assert weights == [0.0, *[0.25] * (len(weights) - 3), 1.0, 1.0]
    assert found.num_response_tokens == 2


def test_joined_data_sets_keep_their_sequences(tmp_path: Path, tiny_model: Any) -> None:
    parts = []
    for name, output in (("a", "y 1"), ("b", "z")):
        rows = [{"instruction": "Say.", "output": output, "category": name}] * 2
        parts.append(read(tiny_model, write(tmp_path, rows, f"{name}.jsonl"), cell="category")[0])
    joined = join_sequences(parts)
    assert len(joined) == 4 and joined.cells == ("a", "a", "b", "b")
    for index, (part, place) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert joined[index].ids.tolist() == parts[part][place].ids.tolist()
        assert joined[index].row == parts[part].places[place]
    assert joined.num_response_tokens == sum(part.num_response_tokens for part in parts)
