"""The 2 x 2 grid: what is held out, what cells mean, and that the order of rows does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.text_hash import normalize_text, text_hash
from instructjax.errors import UsageError
from instructjax.generalization.identity import mix
from instructjax.generalization.split_recipes import SplitRecipe
from instructjax.generalization.splits import (
    RowKeys,
    assign_cells,
    choose_evaluated,
    choose_inputs,
    choose_instructions,
    hold_out,
)


def make_keys(rows: list[tuple[Any, ...]]) -> RowKeys:
    """Rows of (instruction, input, task, category), as numbers."""
    table = np.array(rows, np.uint64)
    return RowKeys(
        instruction=table[:, 0],
        input=table[:, 1],
        task=table[:, 2],
        category=table[:, 3],
        content=np.array([hash(row) % 2**60 for row in rows], np.uint64),
        no_input=table[:, 1] == 0,
    )


def split(keys: RowKeys, **recipe: Any) -> np.ndarray:
    made = SplitRecipe(**recipe)
    return assign_cells(keys, choose_instructions(keys, made), choose_inputs(keys, made))


# 4 categories of 3 tasks, each with 4 wordings on 10 inputs of its own.
CROSSED = make_keys(
    [
        (100 + 10 * t + c, 1000 + 100 * t + z, t, t // 3)
        for t in range(12)
        for c in range(4)
        for z in range(10)
    ]
)


def twin_cells(keys: RowKeys, cell: np.ndarray) -> list[int]:
    """The definition, by loops over training rows."""
    train = [i for i in range(len(cell)) if cell[i] == 0]
    seen_c = {int(keys.instruction[i]) for i in train}
    seen_z = {int(keys.input[i]) for i in train}
    return [
        2 * (int(c) not in seen_c) + (int(z) not in seen_z and not empty)
        for c, z, empty in zip(keys.instruction, keys.input, keys.no_input, strict=True)
    ]


@pytest.mark.parametrize("by", ["instruction", "task", "category", "paraphrase"])
def test_cells_are_what_training_rows_say(by: Any) -> None:
    cell = split(CROSSED, by=by, fraction_unseen_instructions=0.3)
    assert cell.tolist() == twin_cells(CROSSED, cell)
    assert set(cell.tolist()) >= {0, 1, 3}


def test_paraphrases_leave_every_task_seen() -> None:
    cell = split(CROSSED, by="paraphrase", fraction_unseen_instructions=0.5)
    assert set(CROSSED.task[cell == 0].tolist()) == set(range(12))
    for t in range(12):
        assert len(set(CROSSED.instruction[(CROSSED.task == t) & (cell >= 2)].tolist())) == 2


@pytest.mark.parametrize(
    ("by", "column", "count"), [("task", "task", 3), ("category", "category", 1)]
)
def test_whole_groups_are_held_out(by: Any, column: str, count: int) -> None:
    cell = split(CROSSED, by=by, fraction_unseen_instructions=0.25)
    groups = getattr(CROSSED, column)
    unseen = set(groups[cell >= 2].tolist())
    assert len(unseen) == count and not unseen & set(groups[cell < 2].tolist())


def test_tasks_that_share_an_instruction_text_stay_together() -> None:
    # Tasks 0 and 1 have the same text 5, under two names.
    rows = [(5, 10 + z, z % 2, 0) for z in range(8)] + [(6 + t, 20 + t, 2 + t, 0) for t in range(4)]
    keys = make_keys(rows)
    for seed in range(20):
        cell = split(keys, by="task", fraction_unseen_inputs=0.0, seed=seed)
        assert len(set((cell[keys.instruction == 5] >= 2).tolist())) == 1


def test_inputs_are_held_out_within_every_task() -> None:
    chosen = choose_inputs(CROSSED, SplitRecipe(fraction_unseen_inputs=0.3))
    per_task = [np.isin(chosen, CROSSED.input[CROSSED.task == t]).sum() for t in range(12)]
    assert per_task == [3] * 12


def test_an_empty_input_is_never_new() -> None:
    keys = make_keys([(c, 0, c, 0) for c in range(1, 11)])
    cell = split(keys, by="instruction", fraction_unseen_instructions=0.3)
    assert sorted(cell.tolist()) == [0] * 7 + [2] * 3


@settings(max_examples=12)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(random: Any, seed: int) -> None:
    order = list(range(len(CROSSED.content)))
    random.shuffle(order)
    moved = RowKeys(**{n: getattr(CROSSED, n)[order] for n in RowKeys.__dataclass_fields__})
    recipe = {"by": "task", "seed": seed}
    cell = split(CROSSED, **recipe)
    assert split(moved, **recipe).tolist() == cell[order].tolist()
    made = SplitRecipe(**recipe, max_per_task=5)
    chosen = choose_evaluated(CROSSED, cell, made)
    assert choose_evaluated(moved, cell[order], made).tolist() == chosen[order].tolist()


def test_evaluated_rows() -> None:
    cell = split(CROSSED, by="task")
    chosen = choose_evaluated(CROSSED, cell, SplitRecipe(by="task", max_per_task=5))
    for t in range(12):
        for k in range(1, 4):
            here = (CROSSED.task == t) & (cell == k)
            assert chosen[here].sum() == min(5, here.sum())
    assert chosen[cell == 0].sum() == max(chosen[cell == k].sum() for k in (1, 2, 3))
    per_task = np.bincount(CROSSED.task[chosen & (cell == 0)].astype(int))
    per_task = per_task[per_task > 0]
    assert per_task.max() - per_task.min() <= 1  # tasks of one size are sampled alike


def test_hold_out_takes_none_of_a_single_key_and_leaves_one() -> None:
    keys = np.arange(7, dtype=np.uint64)
    marked = hold_out(keys, np.array([0, 1, 1, 2, 2, 2, 2]), 0.99, seed=3)
    assert [int(marked[a:b].sum()) for a, b in ((0, 1), (1, 3), (3, 7))] == [0, 1, 3]
    assert not hold_out(keys, np.zeros(7, int), 0.0, seed=3).any()


def test_mix_is_one_to_one_and_depends_on_the_seed() -> None:
    values = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(mix(values, 1))) == 10_000
    assert not (mix(values, 1) == mix(values, 2)).any()


def test_identity_is_text_not_its_spelling() -> None:
    assert text_hash("ﬁne  text\n") == text_hash("fine text")
    assert text_hash("Fine text") != text_hash("fine text")
    assert text_hash("Fine", fold_case=True) == text_hash("FINE", fold_case=True)
    assert normalize_text("e\u0301") == "é"


@pytest.mark.parametrize(
    "wrong",
    [{"fraction_unseen_instructions": 1.0}, {"fraction_unseen_inputs": -0.1}, {"max_per_task": 0}],
)
def test_a_wrong_recipe_is_a_usage_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SplitRecipe(**wrong)
