"""The verdict on simulated ground truth, and what it refuses."""

from __future__ import annotations

from typing import Any

import jaxtyping
import numpy as np
import pytest
from scipy import stats

from instructjax.errors import DataError, UsageError
from instructjax.generalization import Analysis, analyze
from instructjax.generalization.split_recipes import SplitRecipe


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
    needed = few.needed["inter"]
    assert needed is not None
    assert (needed.unit, needed.how) == ("instructions", "unseen")
    assert (
        "generalizes over inputs; too few instructions to tell whether over instructions: "
        f"{needed.more} more unseen would halve the interval" in few.verdict
    )
    # with as many more as is said in the middle of simulations, intervals are about half as wide
    first = [simulate(inter=0.1, c=(20, 4), sd_c=0.1, seed=s) for s in range(9)]
    more = int(np.median([found.needed["inter"].more for found in first]))  # type: ignore
    then = [simulate(inter=0.1, c=(20, 4 + more), sd_c=0.1, seed=s) for s in range(9)]
    before, after = ([found.gaps.inter.half_width for found in some] for some in (first, then))  # type: ignore
    assert 0.3 < np.mean(after) / np.mean(before) < 0.7


def test_seen_ones_in_proportion_where_unseen_ones_alone_would_not_do() -> None:
    few = [simulate(inter=0.05, c=(5, 30), sd_c=0.1, seed=s) for s in range(9)]
    assert few[0].needed["inter"].how == "in proportion"  # type: ignore
    assert "more unseen, and seen ones in proportion, would halve" in few[0].verdict
    assert few[0].level == "unclear"
    hints = [found.needed["inter"] for found in few]
    more = int(np.median([n.more for n in hints if n.how == "in proportion"]))  # type: ignore
    seen = round(5 * (30 + more) / 30)
    then = [simulate(inter=0.05, c=(seen, 30 + more), sd_c=0.1, seed=s) for s in range(9)]
    before, after = ([found.gaps.inter.half_width for found in some] for some in (few, then))  # type: ignore
    assert 0.3 < np.mean(after) / np.mean(before) < 0.7


@pytest.mark.parametrize(("unseen", "warned"), [(3, True), (4, False)])
def test_two_or_three_unseen_instructions_decide_with_caution(unseen: int, warned: bool) -> None:
    found = simulate(inter=0.6, c=(20, unseen), z=(40, 40))
    assert found.instructions == "no"
    assert ("; with caution, of only 3 unseen instructions" in found.headline) == warned


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


def test_errors_name_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(3)
    with pytest.raises(DataError, match="row 2: a score that is no finite number"):
        analyze([0.1, np.nan, 0.2], ids, ids, None, [0, 1, 2])
    with pytest.raises(DataError, match="row 3: a cell"):
        analyze([0.1, 0.3, 0.2], ids, ids, None, [0, 1, 4])
    with pytest.raises(DataError, match="row 2: a cell"):
        analyze([0.1, 0.3, 0.2], ids, ids, None, np.array([0, 1.5, 2]))
    with pytest.raises(DataError, match=r"row 3: there is no id \(inputs\)"):
        analyze([0.1, 0.3, 0.2], ids, np.array([0, 1, np.nan]), None, [0, 1, 2])
    with pytest.raises(DataError, match=r"row 1: there is no id \(tasks\)"):
        analyze([0.1, 0.3, 0.2], ids, ids, [None, "a", "b"], [0, 1, 2])
    with pytest.raises(DataError, match=r"row 2: there is no id \(instructions\)"):
        analyze([0.1, 0.3, 0.2], ["a", float("nan"), "b"], ids, None, [0, 1, 2])
    with pytest.raises(DataError, match=r"several kinds \(instructions\)"):
        analyze([0.1, 0.3, 0.2], np.array([1, "a", 2], object), ids, None, [0, 1, 2])
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside tests
    with pytest.raises(UsageError, match="weights are 'foo'"):
        analyze([0.1, 0.3, 0.2], ids, ids, ids, [0, 1, 2], weights="foo")  # type: ignore
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
    assert found.level == "unclear"
    assert (
        found.verdict == f"all scores are {value:g}: where nothing varies there is nothing to tell"
    )
    assert found.needed["inter"] is None


def test_a_side_without_variation_is_left_open_and_said_to_be() -> None:
    c, z = (x.ravel() for x in np.indices((12, 12)))
    cell = 2 * (c >= 6) + (z >= 6)
    score = np.where(c < 6, 1.0, np.random.default_rng(0).uniform(0.2, 0.4, c.shape))
    found = analyze(score, c, z, None, cell)
    assert found.inputs == "unclear"
    assert "scores of new inputs do not vary" in found.headline
    assert "intra-task gap 0.00 +- 0.46" in found.numbers  # 1 - 0.025 ** (1 / 6)


@pytest.mark.parametrize(("size", "answer"), [(2, "unclear"), (20, "no")])
def test_all_right_against_all_wrong_decides(size: int, answer: str) -> None:
    """By the rule of three: of 20 instructions none was right, so at most 17% of all are."""
    c, z = (x.ravel() for x in np.indices((2 * size, 2 * size)))
    found = analyze((c < size) * 1.0, c, z, None, 2 * (c >= size) + (z >= size))
    gap = found.gaps.inter
    assert gap is not None
    assert (found.instructions, round(gap.estimate, 9)) == (answer, 1.0)
    assert gap.half_width == pytest.approx(2 * (1 - 0.025 ** (1 / size)))
    # One of the wrong ones right: Clopper and Pearson's, as scipy has it, and no narrower.
    score = (c < size) * 1.0
    score[-1] = 1.0
    gap = analyze(score, c, z, None, 2 * (c >= size) + (z >= size)).gaps.joint
    share: Any = stats.binomtest(1, size).proportion_ci(0.95, "exact")
    assert gap is not None
    expected = share.high + 1 - 0.025 ** (1 / size)
    assert gap.half_width == pytest.approx(expected, rel=1e-6) or size == 2


def test_scores_without_bounds_have_no_interval_where_they_do_not_vary() -> None:
    c, z = (x.ravel() for x in np.indices((40, 40)))
    cell = 2 * (c >= 20) + (z >= 20)
    wide = [analyze(np.where(c < 20, -1.0, -9.0), c, z, None, cell)]
    wide.append(analyze((c < 20) * 1.0, c, z, None, cell, bounds=(-np.inf, np.inf)))
    for found in wide:
        assert found.instructions == "unclear"
        assert found.gaps.inter is not None and found.gaps.inter.half_width == np.inf


def make_tasks(
    *, tasks: int, wordings: int, inputs: int, new: Any, gap: float
) -> tuple[np.ndarray, ...]:
    """Scores of tasks with wordings on inputs of their own; new(t, c) tells what was held out."""
    rng = np.random.default_rng(0)
    t, c, z = (x.ravel() for x in np.indices((tasks, wordings, inputs)))
    unseen = new(t, c)
    score = 0.8 - gap * unseen + 0.02 * rng.standard_normal(tasks)[t]
    score += 0.02 * rng.standard_normal(t.shape)
    return score, 100 * t + c, 1000 * t + z, t, 2 * unseen + (z >= inputs // 2)


@pytest.mark.parametrize(
    ("recipe", "new", "over", "names"),
    [
        (
            {"by": "paraphrase"},
            lambda t, c: c >= 3,
            "over inputs, not over new wordings of known tasks",
            ("intra-task gap", "wording gap", "new wordings"),
        ),
        (
            {"by": "task"},
            lambda t, c: t >= 6,
            "over inputs, not over new tasks",
            ("intra-task gap", "inter-task gap", "new tasks"),
        ),
        (
            {"by": "category"},
            lambda t, c: t >= 6,
            "over inputs, not over new categories of tasks",
            ("intra-task gap", "category gap", "new categories"),
        ),
        (
            {"by": "compositional", "side": "instruction"},
            lambda t, c: c >= 3,
            "over inputs, not over new combinations of known words (instructions)",
            ("intra-task gap", "combination gap", "recombined instructions"),
        ),
        (
            {"by": "compositional", "side": "input", "method": "length"},
            lambda t, c: c >= 3,
            "over inputs longer than any known, not over instructions",
            ("length gap", "inter-task gap", "new instructions"),
        ),
    ],
)
def test_the_words_are_those_of_the_split(recipe, new, over, names) -> None:
    columns = make_tasks(tasks=12, wordings=6, inputs=8, new=new, gap=0.4)
    found = analyze(*columns, recipe=SplitRecipe(**recipe))
    assert found.headline == f"generalizes {over}"
    assert found.numbers[0].startswith(f"{names[0]} ")
    assert found.numbers[1].startswith(f"{names[1]} ")
    assert found.words.cells[2] == names[2]


def test_without_a_recipe_the_tasks_tell_what_unseen_instructions_are() -> None:
    of_task = make_tasks(tasks=12, wordings=6, inputs=8, new=lambda t, c: t >= 6, gap=0.4)
    of_wording = make_tasks(tasks=12, wordings=6, inputs=8, new=lambda t, c: c >= 3, gap=0.4)
    by = SplitRecipe(by="instruction")
    for recipe in (None, by):
        assert "not over new tasks" in analyze(*of_task, recipe=recipe).headline
        assert "not over new wordings of known" in analyze(*of_wording, recipe=recipe).headline
    score, c, z, _, cell = of_task
    assert "not over instructions" in analyze(score, c, z, None, cell, recipe=by).headline


def test_categories_are_the_sample_where_they_were_held_out() -> None:
    """Tasks of a category go together: an interval from tasks alone would be too narrow."""
    columns = make_tasks(tasks=40, wordings=2, inputs=8, new=lambda t, c: t >= 20, gap=0.2)
    category = columns[3] // 5
    score = columns[0] + 0.2 * np.random.default_rng(1).standard_normal(8)[category]
    by_task = analyze(score, *columns[1:], recipe=SplitRecipe(by="category"))
    by_category = analyze(
        score, *columns[1:], recipe=SplitRecipe(by="category"), category_id=category
    )
    assert (by_task.unit, by_category.unit) == ("tasks", "categories")
    assert by_category.gaps.inter.half_width > 1.5 * by_task.gaps.inter.half_width  # type: ignore
    # every unseen task is of one category: nothing is known of others
    one = analyze(*columns, category_id=columns[3] >= 20, recipe=SplitRecipe(by="category"))
    assert one.instructions == "unclear"
    assert "too few categories to tell" in one.headline
    assert "only one is unseen" in one.headline


def test_lower_is_better_gives_the_same_verdict_of_the_errors() -> None:
    right = simulate(inter=0.4, seed=3)
    for threshold in (None, 0.5):
        rng = np.random.default_rng(3)
        c, z = (x.ravel() for x in np.indices((40, 80)))
        score = 0.8 - 0.4 * (c >= 20) + 0.02 * rng.standard_normal(40)[c]
        score += 0.03 * rng.standard_normal(80)[z] + 0.05 * rng.standard_normal(c.shape)
        wrong = analyze(
            1 - score, c, z, None, 2 * (c >= 20) + (z >= 40), better="lower", threshold=threshold
        )
        assert wrong.headline == right.headline
        assert wrong.gaps.inter is not None
        assert wrong.gaps.inter.contrast == "m2 - m0"
        assert wrong.gaps.inter.estimate == pytest.approx(right.gaps.inter.estimate)  # type: ignore
        assert wrong.means == pytest.approx(1 - right.means)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"smallest_gap": float("nan")}, "smallest_gap is nan"),
        ({"smallest_gap": -0.1}, "smallest_gap is -0.1"),
        ({"smallest_gap": float("inf")}, "smallest_gap is inf"),
        ({"threshold": float("nan")}, "epsilon"),
        ({"threshold": float("-inf")}, "epsilon"),
        ({"level": 1.0}, "the level is 1.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        simulate(**options)


def test_the_combination_is_told_where_it_costs_more_than_both_alone() -> None:
    rng = np.random.default_rng(0)
    c, z = (x.ravel() for x in np.indices((40, 40)))
    new_c, new_z = c >= 20, z >= 20
    score = 0.9 - 0.2 * new_c - 0.4 * (new_c & new_z) + 0.02 * rng.standard_normal(c.shape)
    found = analyze(score, c, z, None, 2 * new_c + new_z)
    assert found.level == "inputs"
    assert found.headline.endswith("; both new at once cost more than the two together")
    assert found.numbers[2].startswith("joint gap 0.60")
    assert found.numbers[3].startswith("interaction -0.4")
    # without an interaction, the sentence has the two gaps alone
    plain = simulate(inter=0.4)
    assert len(plain.numbers) == 2
    assert "joint" not in plain.verdict


def test_what_there_is_too_little_of_is_named_with_a_number() -> None:
    """Of inputs here, whose effects are wide; 40 of each alone leave the gap open."""
    rng = np.random.default_rng(5)

    def measure(unseen: int, seed: int) -> Analysis:
        rng = np.random.default_rng(seed)
        c, z = (x.ravel() for x in np.indices((30, 400 + unseen)))
        score = 0.5 + 0.3 * rng.standard_normal(400 + unseen)[z]
        score += 0.02 * rng.standard_normal(c.shape)
        return analyze(score, c, z, None, 2 * (c >= 15) + (z >= 400))

    few = [measure(12, seed) for seed in range(9)]
    needed = few[0].needed["intra"]
    assert needed is not None
    assert (needed.unit, needed.how) == ("inputs", "unseen")
    assert (
        f"too few inputs to tell whether it generalizes over inputs: {needed.more}"
        in (few[0].headline)
        or f"too few inputs to tell whether over inputs: {needed.more} more" in few[0].headline
    )
    more = int(np.median([one.needed["intra"].more for one in few]))  # type: ignore
    then = [measure(12 + more, seed) for seed in range(9)]
    before, after = ([one.gaps.intra.half_width for one in some] for some in (few, then))  # type: ignore
    assert 0.35 < np.mean(after) / np.mean(before) < 0.65
    # of tasks, where tasks are what varies
    score, *ids = make_tasks(tasks=8, wordings=2, inputs=60, new=lambda t, c: t >= 4, gap=0.1)
    score = score + 0.2 * rng.standard_normal(8)[ids[2]]
    found = analyze(score, *ids)
    assert "too few tasks to tell whether over new tasks" in found.headline


def test_of_known_instructions_none_more_are_unseen() -> None:
    """Between seen and unseen inputs all instructions are known: more of them are just more."""
    c, z = (x.ravel() for x in np.indices((5, 10)))
    told = set()
    for seed in range(30):
        score = np.random.default_rng(seed).random(50)
        needed = analyze(score, c, z, None, 2 * (c >= 4) + (z >= 5)).needed["intra"]
        assert needed is not None
        if needed.unit == "instructions":
            told.add(needed.how)
    assert "both sides" in told
    assert not told & {"unseen", "in proportion"}


def test_numbers_have_two_digits_of_their_interval() -> None:
    wide = simulate(inter=0.1, c=(20, 4), sd_c=0.1).gaps.inter
    assert wide is not None
    number, half = str(wide).split(" +- ")
    assert len(half.lstrip("0.")) == 2
    assert len(number.partition(".")[2]) == len(half.partition(".")[2])
