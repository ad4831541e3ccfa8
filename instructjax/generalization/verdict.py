"""At which level does a model generalize? From scores with ids to numbers and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Integer
from scipy.special import stdtrit

from instructjax.errors import UsageError
from instructjax.generalization.analysis import Analysis, GapEstimates
from instructjax.generalization.bootstrap import rescaled_interval
from instructjax.generalization.cells import CELLS, CONTRASTS, Weights
from instructjax.generalization.contrasts import contrast_se
from instructjax.generalization.estimate import Estimate
from instructjax.generalization.measure import measure_cells
from instructjax.generalization.rare_deviations import bound_half_width
from instructjax.generalization.split_recipes import SplitRecipe
from instructjax.generalization.split_words import SplitWords, compare_tasks, describe_split
from instructjax.generalization.verdict_advice import Needed, find_needed
from instructjax.generalization.verdict_records import (
    check_options,
    drop_nested,
    number_ids,
    read_scores,
)
from instructjax.generalization.verdict_words import (
    Answer,
    Better,
    Level,
    combine,
    find_level,
    interaction_matters,
    is_better,
    is_small,
    put_in_words,
)

# Whether the clusters of a way (instructions, inputs, tasks, categories) are seen ones in a cell.
_SEEN = {
    "instructions": (True, True, False, False),
    "inputs": (True, False, True, False),
    "tasks": (True, True, False, False),
    "categories": (True, True, False, False),
}
# The contrast of each gap, and what stands for it where a cell has no scores.
_GAPS = {
    "intra": (CONTRASTS[0], (0, 0, 1, -1)),
    "inter": (CONTRASTS[1], (0, 1, 0, -1)),
    "joint": (CONTRASTS[2],),
    "interaction": (CONTRASTS[3],),
}


def analyze(
    score: Sequence[float] | Float[np.ndarray | Array, " N"] | Integer[np.ndarray | Array, " N"],
    instruction_id: Sequence[Any] | np.ndarray | Array,
    input_id: Sequence[Any] | np.ndarray | Array,
    task_id: Sequence[Any] | np.ndarray | Array | None,
    cell: Sequence[int] | np.ndarray | Array,
    *,
    category_id: Sequence[Any] | np.ndarray | Array | None = None,
    recipe: SplitRecipe | None = None,
    atom_divergence: float | None = None,
    better: Better = "higher",
    level: float = 0.95,
    smallest_gap: float = 0.05,
    threshold: float | None = None,
    weights: Weights = "micro",
    bounds: tuple[float, float] | None = None,
    key: Array | None = None,
) -> Analysis:
    """At which level a model generalizes, from its scores on seen and unseen c and z.

    The rule. A gap is small where its whole interval is at most `smallest_gap`, and not small where
    its whole interval is at least that; otherwise there is too little data to tell. It generalizes
    over inputs if the intra-task gap is small, over instructions if the inter-task gap is small,
    over both if moreover the joint gap is at most twice `smallest_gap` (what the two allow
    together). The inter-task gap is that on seen inputs, m0 - m2, unless fewer than half as many
    unseen instructions (tasks, if given) have seen inputs as have unseen ones: then it is m1 - m3,
    as in splits by task, where tasks seldom share inputs. With `threshold`, the mean of cell 1 must
    be above it, too, for inputs, and that of cell 3 for instructions, which are the book's two
    tests (arXiv 2501.09223, chapter 4): the interval decides in the same way.

    Intervals are Student's t with cluster-robust standard errors (`contrasts.contrast_se`): scores
    share their instruction, their input, and their task where tasks are given. Tasks are taken as a
    sample of tasks if there are two or more: instructions and inputs are nested in them, so the
    interval is then about new tasks. To speak of new instructions for these very tasks, leave
    `task_id` out. Where (nearly) all scores of the cells are the same, so that there is no spread
    to go by, intervals are those of `rare_deviations`: twenty unseen instructions that all fail
    where all seen ones succeed decide.

    The words are those of the split (`describe_split`): new wordings of known tasks are no new
    tasks. Without `recipe`, and for one by instruction, the tasks tell.

    Args:
      score: of each record, any unit.
      instruction_id, input_id, task_id: of each record, numbers or strings, by text rather than by
        name; None without tasks.
      cell: 0 seen c and z, 1 seen c and unseen z, 2 unseen c and seen z, 3 both unseen. Cells may
        be empty: what needs them is None, or is measured on others (`GapEstimates`).
      category_id: of each record, where whole categories were held out: tasks are nested in them,
        and they are the sample.
      recipe: of the split.
      atom_divergence: of a compositional split, as its split.json tells it: whether the words of
        what is unseen are known.
      better: whether a "higher" score is better or a "lower" one, as of an error rate. Gaps are
        positive where the unseen is worse.
      level: of the intervals.
      smallest_gap: the smallest gap that matters, in units of the score; 0 or more.
      threshold: the book's epsilon, in units of the score.
      weights: "macro" counts tasks alike, "micro" records.
      bounds: the lowest and the highest score there can be; by default 0 and 1 where all scores are
        within, else none.
      key: for bootstrap intervals of the gaps beside the others; they do not enter the decision.

    Raises:
      DataError: lengths differ, a score is not finite, a cell is not 0 to 3, an id is None or NaN;
        names the row.
      UsageError: no records, an option that means nothing, or "macro" without tasks.

    >>> rng = np.random.default_rng(1)  # 16 instructions on 20 inputs, a half of each unseen
    >>> c, z = (x.ravel() for x in np.indices((16, 20)))
    >>> score = 0.8 - 0.4 * (c >= 8) + 0.03 * rng.standard_normal(16)[c]
    >>> score += 0.03 * rng.standard_normal(c.shape)
    >>> found = analyze(score, c, z, None, 2 * (c >= 8) + (z >= 10))
    >>> found.headline
    'generalizes over inputs, not over instructions'
    >>> found.numbers[1]
    'inter-task gap 0.401 +- 0.023'
    """
    check_options(level, smallest_gap, threshold, better, weights)
    named = {
        "instructions": instruction_id,
        "inputs": input_id,
        "tasks": task_id,
        "categories": category_id,
    }
    ids = {name: number_ids(name, column) for name, column in named.items() if column is not None}
    values, cells = read_scores(score, cell, list(ids.values()))
    tasks = ids.get("tasks")
    if weights == "macro" and tasks is None:
        raise UsageError("macro weights need tasks", remedy="give task_id, or take micro weights")
    words = describe_split(recipe, compare_tasks(tasks, cells), atom_divergence)
    ways = drop_nested(ids)
    unit = next((name for name in ("categories", "tasks") if name in ways), "instructions")
    nouns = [words.unit if name == "instructions" else name for name in ways]
    seen = np.array([_SEEN[name] for name in ways])
    measured, between = measure_cells(values, cells, list(ways.values()), tasks, weights, key)
    here = measured.counts > 0
    different = {name: _count(column, measured.belongs) for name, column in ids.items()}
    rows = {name: _pick(some, here) for name, some in _GAPS.items()}
    if different[unit][2] * 2 < different[unit][3] and here[1]:
        # A handful of unseen instructions that happen to have seen inputs says little.
        rows["inter"] = np.array(_GAPS["inter"][1], float)
    sign = 1.0 if better == "higher" else -1.0
    matrix = np.array(
        [*np.eye(CELLS), *(np.zeros(CELLS) if r is None else sign * r for r in rows.values())]
    )
    with jax.enable_x64(True):
        se, df = map(np.asarray, contrast_se(measured.covariance, matrix, seen))
    varies = np.array(
        [np.ptp(values[column]) > 0 if column.any() else False for column in measured.belongs.T]
    )
    # Scores that do not vary do not say how far others would. Where they do, and nothing of it is
    # left between clusters, there are too few.
    se = np.where(se > 1e-12 * np.abs(measured.means).max(), se, 0.0)
    df = np.where((se == 0) & ((matrix != 0) & varies).any(1), 0.0, df)
    if bounds is None:
        is_share = values.min() >= 0 and values.max() <= 1
        bounds = (0.0, 1.0) if is_share else (-math.inf, math.inf)

    def bound(row: np.ndarray, df: float) -> float | None:
        if df <= 0 or np.ptp(values) == 0 or not math.isfinite(bounds[0] - bounds[1]):
            return None
        return bound_half_width(
            row, values, measured.belongs, list(ways.values()), seen, bounds=bounds, level=level
        )

    found = [
        _estimate(row, measured.means, float(se[i]), float(df[i]), level, bound(row, float(df[i])))
        if row.any() and here[row != 0].all()
        else None
        for i, row in enumerate(matrix)
    ]
    if between is not None:
        of_gaps = matrix[CELLS:]
        with jax.enable_x64(True):
            ends = rescaled_interval(
                of_gaps @ measured.means, between @ of_gaps.T, se[CELLS:], df[CELLS:], level
            )
        between = np.stack(ends, axis=1)
    gaps = GapEstimates(**dict(zip(_GAPS, found[CELLS:], strict=True)))
    inputs = _answer(gaps.intra, found[1], smallest_gap, threshold, better)
    instructions = _answer(gaps.inter, found[3], smallest_gap, threshold, better)
    both = is_small(gaps.joint, 2 * smallest_gap)
    if both == "not measured":
        both = combine([inputs, instructions])
    decided = find_level(inputs, instructions, both)

    def need(place: int) -> Needed | None:
        if not ((matrix[place] != 0) & varies).any():
            return None
        return find_needed(
            matrix[place],
            measured,
            list(ways.values()),
            seen,
            nouns,
            variance=float(se[place]) ** 2,
            df=float(df[place]),
            level=level,
        )

    needed = {name: need(CELLS + i) if found[CELLS + i] else None for i, name in enumerate(_GAPS)}
    open_questions = {"both": needed["joint"]}
    for name, gap, mean in (("inputs", "intra", 1), ("instructions", "inter", 3)):
        # With a threshold, it can be the mean that leaves the question open.
        by_gap = is_small(getattr(gaps, gap), smallest_gap) != "yes" or threshold is None
        open_questions[name] = needed[gap] if by_gap or found[mean] is None else need(mean)
    if len(values) == 1:
        headline = "there is one score alone, and nothing to compare it with"
    elif np.ptp(values) == 0:
        headline = f"all scores are {values[0]:g}: where nothing varies there is nothing to tell"
    else:
        headline = put_in_words(decided, inputs, instructions, words=words, needed=open_questions)
    unseen = different[unit][2:][here[2:]]
    if instructions in ("yes", "no") and len(unseen) and unseen.min() < 4:
        # Intervals of two or three clusters hold the truth less often than they say.
        noun = words.unit if unit == "instructions" else unit
        headline += f"; with caution, of only {unseen.min()} unseen {noun}"
    matters = interaction_matters(gaps.interaction, smallest_gap)
    if matters == "more" and decided in ("inputs", "instructions", "neither"):
        headline += "; both new at once cost more than the two together"
    return Analysis(
        means=measured.means,
        counts=measured.counts,
        num_instructions=different["instructions"],
        num_inputs=different["inputs"],
        num_tasks=different.get("tasks"),
        cells=tuple(found[:CELLS]),
        gaps=gaps,
        bootstrap=between,
        inputs=inputs,
        instructions=instructions,
        both=both,
        level=decided,
        headline=headline,
        numbers=_list_numbers(gaps, found, words, threshold, decided, matters != "no")
        if np.ptp(values) > 0
        else (),
        words=words,
        unit=words.unit if unit == "instructions" else unit,
        needed=needed,
        confidence=level,
        smallest_gap=smallest_gap,
        threshold=threshold,
        better=better,
    )


def _count(ids: np.ndarray, belongs: np.ndarray) -> np.ndarray:
    return np.array([len(np.unique(ids[column])) for column in belongs.T])


def _pick(contrasts: Sequence[tuple[int, ...]], here: np.ndarray) -> np.ndarray | None:
    """The first contrast whose cells all have scores."""
    rows = (np.array(contrast, float) for contrast in contrasts)
    return next((row for row in rows if here[row != 0].all()), None)


def _write_contrast(row: np.ndarray) -> str:
    first = int((row > 0).argmax())
    rest = (f" {'+' if x > 0 else '-'} m{i}" for i, x in enumerate(row) if x and i != first)
    return f"m{first}" + "".join(rest)


def _estimate(
    row: np.ndarray, means: np.ndarray, se: float, df: float, level: float, bound: float | None
) -> Estimate:
    value = float(row @ means)
    value = 0.0 if abs(value) < 1e-12 * np.abs(means).max() else value
    known = df > 0 and se > 0
    half = float(stdtrit(min(df, 1e9), (1 + level) / 2)) * se if known else math.inf
    if bound is not None:
        half = max(half, bound) if known else bound
    return Estimate(
        estimate=value,
        low=value - half,
        high=value + half,
        se=se,
        df=df,
        contrast=_write_contrast(row),
    )


def _answer(
    gap: Estimate | None,
    mean: Estimate | None,
    smallest_gap: float,
    threshold: float | None,
    better: Better,
) -> Answer:
    small = is_small(gap, smallest_gap)
    return small if threshold is None else combine([small, is_better(mean, threshold, better)])


def _list_numbers(
    gaps: GapEstimates,
    found: list[Estimate | None],
    words: SplitWords,
    threshold: float | None,
    decided: Level,
    interacts: bool,
) -> tuple[str, ...]:
    named = [(words.intra, gaps.intra), (words.inter, gaps.inter)]
    is_open = decided == "unclear" and gaps.intra is not None and gaps.inter is not None
    if decided == "each alone" or is_open or interacts:
        named.append(("joint gap", gaps.joint))
    if interacts:
        named.append(("interaction", gaps.interaction))
    if threshold is not None:
        named += [(f"mean of {words.cells[1]}", found[1]), ("mean of both new", found[3])]
    told = [f"{name} {estimate}" for name, estimate in named if estimate is not None]
    return (*told, *([] if threshold is None else [f"threshold {threshold:g}"]))
