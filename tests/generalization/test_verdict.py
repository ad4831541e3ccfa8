"""The verdict on simulated ground truth, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from instructjax.errors import DataError, UsageError
from instructjax.generalization import Analysis, analyze


def simulate(
    *,
    intra: float = 0.0,
    inter: float = 0.0,
    c: tuple[int, int] = (20, 20),
    z: tuple[int, int] = (40, 40),
    sd_c: float = 0.02,
    seed: int = 0,
    **options: Any,
) -> Analysis:
    """Legal summaries: c asks for a summary in one of many ways, z is a contract."""
    rng = np.random.default_rng(seed)
    of_c, of_z = (x.ravel() for x in np.indices((sum(c), sum(z))))
    new_c, new_z = of_c >= c[0], of_z >= z[0]
    score = 0.8 - intra * new_z - inter * new_c + sd_c * rng.standard_normal(sum(c))[of_c]
    score += 0.03 * rng.standard_normal(sum(z))[of_z] + 0.05 * rng.standard_normal(of_c.shape)
    return analyze(score, of_c, of_z, None, 2 * new_c + new_z, **options)


@pytest.mark.parametrize(
    ("gaps", "level", "words"),
    [
        ({}, "inputs and instructions", "generalizes over inputs and instructions: "),
        ({"inter": 0.4}, "inputs", "generalizes over inputs, not over instructions: "),
        ({"intra": 0.4}, "instructions", "generalizes over instructions, not over inputs: "),
        ({"intra": 0.3, "inter": 0.3}, "neither", "generalizes over neither"),
    ],
)
def test_level_is_the_true_one(gaps, level, words) -> None:
    found = simulate(**gaps)
    assert found.level == level
    assert found.verdict.startswith(words)
    assert found.gaps.intra is not None
    assert found.gaps.inter is not None
    assert found.gaps.intra.low <= gaps.get("intra", 0) <= found.gaps.intra.high
    assert found.gaps.inter.low <= gaps.get("inter", 0) <= found.gaps.inter.high
    assert f"inter-task gap {found.gaps.inter}" in found.verdict


def test_too_few_instructions_to_tell_and_how_many_more() -> None:
    few = simulate(inter=0.1, c=(20, 4), sd_c=0.1)
    assert few.level == "unclear"
    assert few.instructions == "unclear"
    more = few.more_instructions_needed
    assert more is not None
    assert f"too few instructions to tell whether over instructions: {more} more" in few.verdict
    # with as many more as is said in the middle of simulations, intervals are about half as wide
    first = [simulate(inter=0.1, c=(20, 4), sd_c=0.1, seed=s) for s in range(9)]
    more = int(np.median([found.more_instructions_needed or np.inf for found in first]))
    then = [simulate(inter=0.1, c=(20, 4 + more), sd_c=0.1, seed=s) for s in range(9)]
    before, after = ([found.gaps.inter.half_width for found in some] for some in (first, then))  # type: ignore
    assert 0.3 < np.mean(after) / np.mean(before) < 0.7


def test_seen_ones_in_proportion_where_unseen_ones_alone_would_not_do() -> None:
    few = [simulate(inter=0.05, c=(5, 30), sd_c=0.1, seed=s) for s in range(9)]
    assert few[0].more_instructions_needed is None
    assert "more unseen, and seen ones in proportion, would halve" in few[0].verdict
    assert few[0].level == "unclear"
    more = int(np.median([n for found in few if (n := found.more_in_proportion_needed)]))
    seen = round(5 * (30 + more) / 30)
    then = [simulate(inter=0.05, c=(seen, 30 + more), sd_c=0.1, seed=s) for s in range(9)]
    before, after = ([found.gaps.inter.half_width for found in some] for some in (few, then))  # type: ignore
    assert 0.3 < np.mean(after) / np.mean(before) < 0.7


def test_one_unseen_instruction_tells_nothing_about_others() -> None:
    found = simulate(inter=0.4, c=(20, 1))
    assert found.gaps.inter is not None
    assert found.gaps.inter.high == np.inf
    assert found.instructions == "unclear"
    assert "only one is unseen" in found.verdict


def test_one_seen_instruction_is_the_books_fixed_one() -> None:
    found = simulate(c=(1, 20))
    assert found.inputs == "yes"
    # which leaves a comparison of two groups of inputs, Welch's
    rng = np.random.default_rng(1)
    seen, unseen = rng.normal(0.8, 0.1, 40), rng.normal(0.7, 0.2, 25)
    score, new = np.concatenate([seen, unseen]), np.arange(65) >= 40
    gap = analyze(score, np.zeros(65, int), np.arange(65), None, new.astype(int)).gaps.intra
    welch: Any = stats.ttest_ind(seen, unseen, equal_var=False)
    assert gap is not None
    assert gap.df == pytest.approx(welch.df, rel=1e-6)
    assert (gap.low, gap.high) == pytest.approx(welch.confidence_interval(0.95), rel=1e-6)


def test_cells_may_be_empty() -> None:
    rng = np.random.default_rng(0)
    c = np.repeat(np.arange(40), 20)  # each instruction has inputs of its own; cell 2 is empty
    z = np.arange(800)
    cell = np.where(c < 20, np.where(z % 20 < 10, 0, 1), 3)
    score = 0.7 - 0.3 * (cell == 3) + 0.05 * rng.standard_normal(800)
    found = analyze(score, c, [f"z{i}" for i in z], c, cell)
    assert found.gaps.interaction is None
    assert found.gaps.inter is not None
    assert found.gaps.inter.contrast == "m1 - m3"
    assert found.counts.tolist() == [200, 200, 0, 400]
    assert found.level == "inputs"
    assert found.unit == "tasks"
    alone = analyze(score[cell == 3], c[cell == 3], z[cell == 3], None, cell[cell == 3])
    assert alone.inputs == alone.instructions == "not measured"
    assert alone.level == "unclear"


def test_a_handful_of_unseen_instructions_on_seen_inputs_does_not_decide() -> None:
    """Tasks seldom share inputs: where 3 of 20 unseen ones do, the gap is that on new inputs."""
    rng = np.random.default_rng(0)
    c, z = (x.ravel() for x in np.indices((40, 12)))
    seen_z = np.where(c < 20, z < 6, (z < 6) & (c >= 37))
    cell = 2 * (c >= 20) + ~seen_z
    score = 0.7 - 0.3 * (c >= 20) + 0.05 * rng.standard_normal(480)
    ids = [f"{a}-{b}" for a, b in zip(c, z, strict=True)]
    found = analyze(score, c, ids, c, cell)
    assert found.gaps.inter is not None
    assert found.gaps.inter.contrast == "m1 - m3"
    assert found.gaps.inter.estimate == pytest.approx(
        score[cell == 1].mean() - score[cell == 3].mean()
    )
    assert found.level == "inputs"
    half = analyze(score[c < 23], c[c < 23], z[c < 23], None, (2 * (c >= 20) + (z >= 6))[c < 23])
    assert half.gaps.inter is not None
    assert half.gaps.inter.contrast == "m0 - m2"


def test_threshold_is_tested_too() -> None:
    high, low = simulate(threshold=0.6), simulate(threshold=0.9)
    assert high.level == "inputs and instructions"
    assert "threshold 0.6" in high.verdict
    assert low.level == "neither"


@pytest.mark.slow
def test_bootstrap_and_t_agree() -> None:
    import jax

    found = simulate(inter=0.2, key=jax.random.key(0))
    assert found.bootstrap is not None
    assert found.gaps.inter is not None
    ends = (found.gaps.inter.low, found.gaps.inter.high)
    np.testing.assert_allclose(found.bootstrap[1], ends, atol=0.4 * found.gaps.inter.half_width)


def test_errors_name_the_row() -> None:
    ids = np.arange(3)
    with pytest.raises(DataError, match="row 2: a score that is no finite number"):
        analyze([0.1, np.nan, 0.2], ids, ids, None, [0, 1, 2])
    with pytest.raises(DataError, match="row 3: a cell"):
        analyze([0.1, 0.3, 0.2], ids, ids, None, [0, 1, 4])
    with pytest.raises(DataError, match="2, 3 rows"):
        analyze([0.1, 0.3], ids, ids, None, [0, 1])
    with pytest.raises(UsageError, match="no scores"):
        analyze([], [], [], None, [])
    with pytest.raises(UsageError, match="macro"):
        analyze([0.1, 0.3, 0.2], ids, ids, None, [0, 1, 1], weights="macro")


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("size", [2, 6, 20])
def test_scores_that_do_not_vary_decide_nothing(value: float, size: int) -> None:
    c, z = (x.ravel() for x in np.indices((2 * size, 2 * size)))
    cell = 2 * (c >= size) + (z >= size)
    found = analyze(np.full(c.shape, value), c, z, None, cell)
    assert found.level == "unclear" and "too few" in found.verdict
    assert found.more_instructions_needed is None
