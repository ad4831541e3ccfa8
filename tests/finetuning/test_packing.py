"""The order of sequences, and their rows: nothing lost or twice, little padding, resumable."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.finetuning.order import order_indices
from instructjax.finetuning.packing import Packing, RowPlans, useful_share


def mixed_sizes(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """Many short ones, some as long as a row: lengths of instruction data."""
    rng = np.random.default_rng(seed)
    return np.clip(np.exp(rng.normal(4.8, 0.8, count)).astype(int), 3, longest)


def members(plans: list[Any]) -> list[int]:
    return [index for plan in plans for row in plan for index in row]


@pytest.mark.parametrize(("length", "rows"), [(512, 2), (1024, 4), (2048, 8)])
def test_rows_of_mixed_lengths_are_full(length: int, rows: int) -> None:
    sizes = mixed_sizes(4000, length)
    packing = Packing(length=length, rows=rows)
    plans = list(RowPlans(order_indices([4000], epochs=1), sizes, packing))
    assert useful_share(plans, sizes, packing) >= 0.95
    assert sorted(members(plans)) == list(range(4000))
    for plan in plans:
        assert len(plan) == rows
        assert all(sum(sizes[index] for index in row) <= length for row in plan)


def test_none_waits_for_long() -> None:
    sizes = mixed_sizes(3000, 1024)
    packing = Packing(length=1024, rows=4)
    order = list(order_indices([3000], epochs=1))
    came = {index: turn for turn, index in enumerate(order)}
    plans = list(RowPlans(order_indices([3000], epochs=1), sizes, packing))
    step_of = {index: step for step, plan in enumerate(plans) for row in plan for index in row}
    per_step = 3000 / len(plans)
    waits = [step_of[index] - came[index] / per_step for index in order]
    assert max(waits) < 16
    assert plans[0][0][0] == order[0]


def test_without_packing_a_row_holds_one() -> None:
    sizes = np.array([5, 6, 3])
    plans = list(
        RowPlans(order_indices([3], epochs=1), sizes, Packing(length=9, rows=2, several=False))
    )
    assert [len(row) for plan in plans for row in plan] == [1, 1, 1, 0]


def test_a_sequence_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 10 positions and a row has 9"):
        RowPlans(order_indices([2], epochs=1), np.array([3, 10]), Packing(length=9, rows=1))


def test_plans_go_on_from_a_stored_state() -> None:
    sizes = mixed_sizes(900, 512)

    def open_plans() -> Any:
        indices = order_indices([600, 300], weights=[1.0, 2.0], seed=5)
        return iter(RowPlans(indices, sizes, Packing(length=512, rows=3)))

    undisturbed = list(islice(open_plans(), 40))
    for stop in (0, 1, 17):
        first = open_plans()
        before = list(islice(first, stop))
        state = json.loads(json.dumps(first.get_state()))
        second = open_plans()
        second.set_state(state)
        assert before + list(islice(second, 40 - stop)) == undisturbed


def test_epochs_hold_every_sequence_once_in_an_order_of_their_own() -> None:
    found = list(order_indices([70, 30], epochs=3, seed=1))
    epochs = [found[start : start + 100] for start in (0, 100, 200)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert found == list(order_indices([70, 30], epochs=3, seed=1))
    others = [list(order_indices([70, 30], epochs=3, seed=seed)) for seed in (0, 2)]
    # Neighbouring seeds do not repeat an epoch of this one.
    for other in others:
        assert not any(other[start : start + 100] in epochs for start in (0, 100, 200))


def test_half_an_epoch() -> None:
    found = list(order_indices([100], epochs=1.5))
    assert len(found) == 150 and set(Counter(found).values()) == {1, 2}


def test_data_sets_are_mixed_by_weight() -> None:
    found = list(islice(order_indices([1000, 50], weights=[1.0, 3.0], seed=2), 4000))
    small = [index for index in found if index >= 1000]
    assert len(small) == pytest.approx(3000, abs=2)
    # The small one is gone through again and again, each time whole.
    assert Counter(small).most_common()[0][1] - min(Counter(small).values()) <= 1
    # They alternate: every stretch has its share.
    assert all(4 <= sum(i >= 1000 for i in found[s : s + 8]) <= 8 for s in range(0, 4000, 8))


def test_plans_end_with_empty_ones() -> None:
    sizes = mixed_sizes(50, 256)
    packing = Packing(length=256, rows=2)
    plans = list(RowPlans(order_indices([50], epochs=1), sizes, packing, total=60))
    assert len(plans) == 60 and plans[-1] == ((), ())
    assert sorted(members(plans)) == list(range(50))
