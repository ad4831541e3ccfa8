"""The order of sequences, and their rows: nothing lost or twice, little padding, resumable."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.finetuning.batch import make_sft_batch
from instructjax.finetuning.order import order_indices
from instructjax.finetuning.packing import Packing, RowPlans, count_positions
from instructjax.finetuning.sequences import Sequences


def of_sizes(sizes: np.ndarray) -> Sequences:
    """Sequences of random ids that take so many positions."""
    rng, count = np.random.default_rng(0), len(sizes)
    return of_ids([rng.integers(0, 50_000, size + 1) for size in sizes], [1] * count)


def of_ids(ids: list[np.ndarray], responses: list[int]) -> Sequences:
    """The last tokens are the response."""
    weights = [
        np.arange(len(x)) >= len(x) - scored for x, scored in zip(ids, responses, strict=True)
    ]
    return Sequences(
        ids=np.concatenate(ids).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        starts=np.cumsum([0, *map(len, ids)]),
        responses=np.array(responses),
        places=tuple(map(str, range(len(ids)))),
        cells=("",) * len(ids),
    )


def mixed(count: int, longest: int, seed: int = 0) -> Sequences:
    """Many short ones, some as long as a row: lengths of instruction data."""
    rng = np.random.default_rng(seed)
    return of_sizes(np.clip(np.exp(rng.normal(4.8, 0.8, count)).astype(int), 3, longest))


def useful_share(plans: list[Any], sequences: Sequences, packing: Packing) -> float:
    used = sum(count_positions(plan, sequences, packing) for plan in plans)
    return used / (len(plans) * packing.rows * packing.length)


def members(plans: list[Any]) -> list[int]:
    return [index for plan in plans for row in plan for index in row]


@pytest.mark.parametrize(("length", "rows"), [(512, 2), (1024, 4), (2048, 8)])
def test_rows_of_mixed_lengths_are_full(length: int, rows: int) -> None:
    sequences = mixed(1600, length)
    sizes = sequences.sizes
    packing = Packing(length=length, rows=rows)
    plans = list(RowPlans(order_indices([1600], epochs=1), sequences, packing))
    assert useful_share(plans, sequences, packing) >= 0.95
    assert sorted(members(plans)) == list(range(1600))
    for plan in plans:
        assert len(plan) == rows
        assert all(sum(sizes[index] for index in row) <= length for row in plan)


def test_none_waits_for_long() -> None:
    sequences = mixed(3000, 1024)
    packing = Packing(length=1024, rows=4)
    order = list(order_indices([3000], epochs=1))
    came = {index: turn for turn, index in enumerate(order)}
    plans = list(RowPlans(order_indices([3000], epochs=1), sequences, packing))
    step_of = {index: step for step, plan in enumerate(plans) for row in plan for index in row}
    per_step = 3000 / len(plans)
    waits = [step_of[index] - came[index] / per_step for index in order]
    assert max(waits) < 16
    assert plans[0][0][0] == order[0]


def tasks(count: int, seed: int = 0, scored: int = 20, own: int = 60) -> Sequences:
    """Of each task an instruction, an input and a response; now and then one comes twice."""
    rng = np.random.default_rng(seed)
    instructions = [rng.integers(0, 50_000, rng.integers(40, 200)) for _ in range(12)]
    ids: list[np.ndarray] = []
    for _ in range(count):
        if ids and rng.random() < 0.05:
            ids.append(ids[rng.integers(len(ids))])
            continue
        rest = rng.integers(0, 50_000, rng.integers(1, own))
        ids.append(np.concatenate([instructions[rng.integers(12)], rest]))
    return of_ids(ids, [min(int(rng.integers(1, scored)), len(x) - 1) for x in ids])


def split_trees(row: list[list[int]]) -> list[list[list[int]]]:
    """Runs of a row in the order of their inputs, none of which holds the same twice."""
    trees: list[list[list[int]]] = []
    for ids in row:
        before = trees[-1][-1] if trees else ids
        if not trees or ids[:-1] < before[:-1] or ids in trees[-1]:
            trees.append([])
        trees[-1].append(ids)
    return trees


def count_prefixes(tree: list[list[int]]) -> int:
    return len({tuple(ids[:n]) for ids in tree for n in range(1, len(ids))})


@pytest.mark.parametrize(
    ("length", "rows", "scored", "own"),
    [(512, 4, 20, 60), (1024, 8, 20, 60), (512, 4, 190, 60), (256, 4, 200, 5)],
)
def test_what_a_row_begins_with_in_common_stands_once(length, rows, scored, own) -> None:
    """Also where most tokens are scored, and where nearly all that is new is scored ends."""
    sequences = tasks(2000, scored=scored, own=own)
    packing = Packing(length=length, rows=rows, share=True)
    plans = list(RowPlans(order_indices([2000], epochs=1), sequences, packing))
    assert sorted(members(plans)) == list(range(2000))
    asked = int(sequences.sizes.sum())
    total = 0
    for plan in plans:
        chosen = [[sequences[index] for index in row] for row in plan]
        made = make_sft_batch(chosen, length=length, share=True)  # refuses what does not fit
        used = (np.asarray(made.batch.ends) > 0).sum(1)
        for row, count in zip(chosen, used, strict=True):
            trees = split_trees([x.ids.tolist() for x in row])
            assert count == sum(map(count_prefixes, trees))
            most = Counter(index for one in plan for index in one).most_common(1)[0][1]
            assert len(trees) <= 1 + most
        assert used.sum() == count_positions(plan, sequences, packing)
        assert made.weights.sum() == sequences.responses[members([plan])].sum()
        total += int(used.sum())
    assert total < 0.62 * asked
    full = {20: 0.95, 190: 0.9}.get(scored, 0.0)
    assert useful_share(plans[:-1], sequences, packing) >= full


@pytest.mark.parametrize(
    "ids", [[[5, 6, 7, 2]], [[5, 6, 7, 2]] * 300, [[5, 6, n, 2] for n in "123"]]
)
def test_a_small_set_is_not_gone_through_many_times_in_a_step(ids: list[list[int]]) -> None:
    """What comes again is computed again, once for all that come again as often."""
    sequences = of_ids([np.array(x, np.int32) for x in ids], [1] * len(ids))
    packing = Packing(length=16, rows=2, share=True)
    plans = list(islice(RowPlans(order_indices([len(ids)]), sequences, packing), 20))
    for plan in plans:
        assert 2 <= len(members([plan])) <= 2 * 16 - 2
        made = make_sft_batch([[sequences[i] for i in row] for row in plan], length=16, share=True)
        assert made.weights.sum() == len(members([plan]))
    indices = order_indices([len(ids)], epochs=max(2, 120 // len(ids)))
    alone = list(RowPlans(indices, sequences, Packing(length=16, rows=2)))
    shared = list(RowPlans(indices, sequences, packing))
    assert sorted(members(shared)) == sorted(members(alone))
    assert len(shared) >= 0.3 * len(alone)


SLOW = pytest.mark.slow


# Of 700 or 1,000 tokens a second tree often does not fit in what is left of a row.
@pytest.mark.parametrize(
    ("count", "size", "full"),
    [
        (60, 200, 0.95),
        pytest.param(200, 200, 0.95, marks=SLOW),
        (60, 400, 0.95),
        pytest.param(200, 400, 0.95, marks=SLOW),
        pytest.param(200, 700, 0.85, marks=SLOW),
        pytest.param(200, 1000, 0.85, marks=SLOW),
        pytest.param(200, 1500, 0.95, marks=SLOW),
    ],
)
def test_rows_are_full_where_epochs_meet(count: int, size: int, full: float) -> None:
    """A step holds several epochs of a small set, and each sequence as often as it came."""
    rng = np.random.default_rng(0)
    instruction = rng.integers(0, 50_000, size)
    own = [rng.integers(0, 50_000, rng.integers(5, 20)) for _ in range(count)]
    sequences = of_ids([np.concatenate([instruction, x]) for x in own], [3] * count)
    packing = Packing(length=2048, rows=4, share=True)
    plans = list(RowPlans(order_indices([count], epochs=30), sequences, packing))
    assert Counter(members(plans)) == dict.fromkeys(range(count), 30)
    assert useful_share(plans[:-1], sequences, packing) >= full
    alone = Packing(length=2048, rows=4)
    steps = len(list(RowPlans(order_indices([count], epochs=30), sequences, alone)))
    assert len(plans) < 0.25 * steps


def test_the_same_over_and_over_takes_what_it_takes_alone() -> None:
    sequences = of_ids([np.arange(40)] * 50, [3] * 50)
    packing = Packing(length=256, rows=4, share=True)
    plans = list(RowPlans(order_indices([50], epochs=4), sequences, packing))
    alone = Packing(length=256, rows=4)
    assert len(plans) == len(list(RowPlans(order_indices([50], epochs=4), sequences, alone)))
    assert count_positions(plans[0], sequences, packing) == 24 * 39


def test_of_two_that_differ_in_their_last_token_each_comes_again() -> None:
    """Their inputs are the same, so the order of ids does not say where they come again."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 50_000, 100)
    sequences = of_ids([np.append(prompt, label) for label in (7, 8, 9)], [1] * 3)
    packing = Packing(length=512, rows=1, share=True)
    plans = list(RowPlans(order_indices([3], epochs=50), sequences, packing))
    assert useful_share(plans[:-1], sequences, packing) >= 0.95
    for plan in plans[:-1]:
        again = max(Counter(members([plan])).values())
        assert count_positions(plan, sequences, packing) == 100 * again


def test_conversations_that_go_on_from_each_other_fit_their_rows() -> None:
    """A sequence may be the whole beginning of another, its last token included."""
    rng = np.random.default_rng(0)
    ids: list[np.ndarray] = []
    for _ in range(100):
        turns = rng.integers(0, 50_000, (4, int(rng.integers(5, 40))))
        ids += [np.concatenate(turns[:count]) for count in range(1, 5)]
    sequences = of_ids(ids, [int(rng.integers(1, len(x))) for x in ids])
    packing = Packing(length=256, rows=4, share=True)
    plans = list(RowPlans(order_indices([len(ids)], epochs=3), sequences, packing))
    assert sorted(members(plans)) == sorted(3 * list(range(len(ids))))
    for plan in plans:
        rows = [[sequences[index] for index in row] for row in plan]
        made = make_sft_batch(rows, length=256, share=True)  # refuses what does not fit
        assert made.weights.sum() == sequences.responses[members([plan])].sum()


def test_sharing_keeps_the_order_of_tasks() -> None:
    """A step is no step of one task: each is of those whose turn it is."""
    sequences = tasks(2000)
    order = list(order_indices([2000], epochs=1))
    came = {index: turn for turn, index in enumerate(order)}
    packing = Packing(length=512, rows=4, share=True)
    plans = list(RowPlans(order_indices([2000], epochs=1), sequences, packing))
    step_of = {index: step for step, plan in enumerate(plans) for row in plan for index in row}
    waits = [step_of[index] - came[index] / 2000 * len(plans) for index in order]
    assert max(waits) < 4 and order[0] in members(plans[:1])

    def count_tasks(indices: list[int]) -> int:
        return len({int(sequences.ids_of(index)[0]) for index in indices})

    sizes = [len(members([plan])) for plan in plans[:-1]]
    parts = [order[stop - size : stop] for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
    found = sum(count_tasks(members([plan])) for plan in plans[:-1])
    assert found > 0.85 * sum(map(count_tasks, parts))


def test_without_packing_a_row_holds_one() -> None:
    packing = Packing(length=9, rows=2, several=False)
    plans = list(RowPlans(order_indices([3], epochs=1), of_sizes(np.array([5, 6, 3])), packing))
    assert [len(row) for plan in plans for row in plan] == [1, 1, 1, 0]


def test_a_sequence_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 10 positions and a row has 9"):
        sequences = of_sizes(np.array([3, 10]))
        RowPlans(order_indices([2], epochs=1), sequences, Packing(length=9, rows=1))


@pytest.mark.parametrize("share", [False, True])
def test_plans_go_on_from_a_stored_state(share: bool) -> None:
    sequences = tasks(900) if share else mixed(900, 512)

    def open_plans() -> Any:
        indices = order_indices([600, 300], weights=[1.0, 2.0], seed=5)
        return iter(RowPlans(indices, sequences, Packing(length=512, rows=3, share=share)))

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
    packing = Packing(length=256, rows=2)
    plans = list(RowPlans(order_indices([50], epochs=1), mixed(50, 256), packing, total=60))
    assert len(plans) == 60 and plans[-1] == ((), ())
    assert sorted(members(plans)) == list(range(50))
