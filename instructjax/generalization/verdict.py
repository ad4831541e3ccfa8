"""At which level does a model generalize? From scores with ids to numbers and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Integer
from scipy.special import stdtrit

from instructjax.errors import DataError, UsageError
from instructjax.generalization.analysis import Analysis, GapEstimates
from instructjax.generalization.cells import CELLS, CONTRASTS, Weights
from instructjax.generalization.contrasts import contrast_se
from instructjax.generalization.estimate import Estimate
from instructjax.generalization.measure import Measured, measure_cells
from instructjax.generalization.planning import clusters_to_halve
from instructjax.generalization.verdict_words import (
    Answer,
    Level,
    combine,
    find_level,
    is_above,
    is_small,
    put_in_words,
)

# Whether the clusters of a way (instructions, inputs, tasks) are seen ones in each cell.
_SEEN = ((True, True, False, False), (True, False, True, False), (True, True, False, False))
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
    level: float = 0.95,
    smallest_gap: float = 0.05,
    threshold: float | None = None,
    weights: Weights = "micro",
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
    `task_id` out.

    Args:
      score: of each record, any unit, higher is better.
      instruction_id, input_id, task_id: of each record, numbers or strings, by text rather than by
        name; None without tasks.
      cell: 0 seen c and z, 1 seen c and unseen z, 2 unseen c and seen z, 3 both unseen. Cells may
        be empty: what needs them is None, or is measured on others (`GapEstimates`).
      level: of the intervals.
      smallest_gap: the smallest gap that matters, in units of the score.
      threshold: the book's epsilon, in units of the score.
      weights: "macro" counts tasks alike, "micro" records.
      key: for bootstrap intervals of the gaps beside the others; they do not enter the decision.

    Raises:
      DataError: lengths differ, a score is not finite, a cell is not 0 to 3; names the row.
      UsageError: no records, or "macro" without tasks.

    >>> rng = np.random.default_rng(1)  # 16 instructions on 20 inputs, a half of each unseen
    >>> c, z = (x.ravel() for x in np.indices((16, 20)))
    >>> score = 0.8 - 0.4 * (c >= 8) + 0.03 * rng.standard_normal(16)[c]
    >>> score += 0.03 * rng.standard_normal(c.shape)
    >>> print(analyze(score, c, z, None, 2 * (c >= 8) + (z >= 10)).verdict)
    generalizes over inputs, not over instructions: intra-task gap -0.01 +- 0.01, inter-task gap \
0.40 +- 0.02
    """
    ids = [_number(column) for column in (instruction_id, input_id, task_id) if column is not None]
    values, cells = _read_scores(score, cell, ids)
    tasks = ids[2] if len(ids) == 3 else None
    unit = "instructions" if tasks is None or len(np.unique(tasks)) == 1 else "tasks"
    if weights == "macro" and tasks is None:
        raise UsageError("macro weights need tasks", remedy="give task_id, or take micro weights")
    ways, seen = _drop_nested(ids)
    measured, between = measure_cells(values, cells, ways, tasks, weights, key)
    here = measured.counts > 0
    different = [_count(column, measured.belongs) for column in ids]
    of_unit = different[2 if unit == "tasks" else 0]
    rows = {name: _pick(some, here) for name, some in _GAPS.items()}
    if of_unit[2] * 2 < of_unit[3] and here[1]:
        # A handful of unseen instructions that happen to have seen inputs says little.
        rows["inter"] = np.array(_GAPS["inter"][1], float)
    matrix = np.array(
        [*np.eye(CELLS), *(np.zeros(CELLS) if r is None else r for r in rows.values())]
    )
    with jax.enable_x64(True):
        se, df = map(np.asarray, contrast_se(measured.covariance, matrix, seen))
    found = [
        _estimate(row, measured.means, float(se[i]), float(df[i]), level)
        if row.any() and here[row != 0].all()
        else None
        for i, row in enumerate(matrix)
    ]
    more = in_proportion = None
    if rows["inter"] is not None:
        way = len(ways) - 1 if unit == "tasks" else 0
        now = float(se[5]) ** 2, float(df[5])
        more, in_proportion = _more_needed(measured, ways[way], way, rows["inter"], *now, level)
    if between is not None:
        between = np.quantile(
            between @ matrix[CELLS:].T, [(1 - level) / 2, (1 + level) / 2], axis=0
        ).T
    gaps = GapEstimates(**dict(zip(_GAPS, found[CELLS:], strict=True)))
    inputs = _answer(gaps.intra, found[1], smallest_gap, threshold)
    instructions = _answer(gaps.inter, found[3], smallest_gap, threshold)
    both = is_small(gaps.joint, 2 * smallest_gap)
    if both == "not measured":
        both = combine([inputs, instructions])
    decided = find_level(inputs, instructions, both)
    measured_in = of_unit[2:] if rows["inter"] is None else of_unit[2:][rows["inter"][2:] != 0]
    return Analysis(
        means=measured.means,
        counts=measured.counts,
        num_instructions=different[0],
        num_inputs=different[1],
        num_tasks=None if tasks is None else different[2],
        cells=tuple(found[:CELLS]),
        gaps=gaps,
        bootstrap=between,
        inputs=inputs,
        instructions=instructions,
        both=both,
        level=decided,
        verdict=put_in_words(
            decided,
            inputs,
            instructions,
            numbers=_list_numbers(gaps, found, threshold, decided),
            unit=unit,
            unseen=int(measured_in.max()),
            more=more,
            in_proportion=in_proportion,
        ),
        unit=unit,
        more_instructions_needed=more,
        more_in_proportion_needed=in_proportion,
        confidence=level,
        smallest_gap=smallest_gap,
        threshold=threshold,
    )


def _number(column: Any) -> np.ndarray:
    """Ids from 0 in the order of what was given."""
    return np.unique(np.asarray(column), return_inverse=True)[1].ravel()


def _drop_nested(ids: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Ways of clustering, and in which cells their clusters are seen ones.

    Instructions and inputs that belong to one task each vary with it, and are no ways of their own.
    """
    kept = list(range(len(ids)))
    if len(ids) == 3:
        tasks = ids[2]
        if tasks.max() == 0:
            kept = [0, 1]
        else:
            kept = [i for i in (0, 1) if not _is_nested(ids[i], tasks)] + [2]
    return [ids[i] for i in kept], np.array([_SEEN[i] for i in kept])


def _is_nested(fine: np.ndarray, coarse: np.ndarray) -> bool:
    pairs = fine.astype(np.int64) * (int(coarse.max()) + 1) + coarse
    return len(np.unique(pairs)) == len(np.unique(fine))


def _read_scores(score: Any, cell: Any, ids: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values, cells = np.asarray(score, np.float64), np.asarray(cell, np.int64)
    if not len(values):
        raise UsageError("there are no scores", remedy="give at least one record")
    lengths = {len(column) for column in (values, cells, *ids)}
    if len(lengths) > 1:
        raise DataError(
            f"columns have {', '.join(map(str, sorted(lengths)))} rows",
            remedy="give one id a score",
        )
    for wrong, what in (
        (~np.isfinite(values), "a score that is no finite number"),
        ((cells < 0) | (cells >= CELLS), "a cell that is not 0, 1, 2 or 3"),
    ):
        if wrong.any():
            raise DataError(what, row=f"row {int(wrong.argmax()) + 1}", remedy="leave the row out")
    return values, cells


def _count(ids: np.ndarray, belongs: np.ndarray) -> np.ndarray:
    return np.array([len(np.unique(ids[column])) for column in belongs.T])


def _pick(contrasts: Sequence[tuple[int, ...]], here: np.ndarray) -> np.ndarray | None:
    """The first contrast whose cells all have scores."""
    rows = (np.array(contrast, float) for contrast in contrasts)
    return next((row for row in rows if here[row != 0].all()), None)


def _write_contrast(row: np.ndarray) -> str:
    terms = "".join(f" {'+' if x > 0 else '-'} m{i}" for i, x in enumerate(row) if x)
    return terms.removeprefix(" + ")


def _estimate(row: np.ndarray, means: np.ndarray, se: float, df: float, level: float) -> Estimate:
    value = float(row @ means)
    # Scores that do not vary at all, but for rounding, do not say how far others would.
    varies = df > 0 and se > 1e-12 * np.abs(means).max()
    half = float(stdtrit(min(df, 1e9), (1 + level) / 2)) * se if varies else math.inf
    return Estimate(
        estimate=value,
        low=value - half,
        high=value + half,
        se=se,
        df=df,
        contrast=_write_contrast(row),
    )


def _more_needed(
    measured: Measured,
    ids: np.ndarray,
    way: int,
    row: np.ndarray,
    variance: float,
    df: float,
    level: float,
) -> tuple[int | None, int | None]:
    """Unseen instructions (tasks where they are given) that would halve the interval of a gap:
    alone; or, where they alone cannot, with seen ones added in proportion."""
    counts = measured.covariance.clusters
    unseen = np.isin(np.arange(CELLS), (2, 3)) & (row != 0)
    sets = [set(ids[measured.belongs[:, k]]) for k in np.flatnonzero(row)]
    if sets[0] & sets[-1]:  # the same tasks, in other words: more of them are more on both sides
        unseen = row != 0
    clusters = int(counts[way, unseen].min())
    if clusters < 2 or variance <= 0:
        return None, None

    single = measured.covariance.single[way]
    of_way = min(float((row * unseen) @ single @ (row * unseen)), variance)
    alone = clusters_to_halve(variance, of_way, clusters, df, level=level)
    if alone is not None:
        return alone, None
    # Both sides grow alike: as if the way had so many clusters as give the degrees of freedom.
    of_way = min(float(row @ single @ row), variance)
    as_if = 1 + df * (of_way / variance) ** 2
    more = clusters_to_halve(variance, of_way, as_if, df, level=level)
    return None, None if more is None else math.ceil(more * clusters / as_if)


def _answer(
    gap: Estimate | None, mean: Estimate | None, smallest_gap: float, threshold: float | None
) -> Answer:
    small = is_small(gap, smallest_gap)
    return small if threshold is None else combine([small, is_above(mean, threshold)])


def _list_numbers(
    gaps: GapEstimates, found: list[Estimate | None], threshold: float | None, decided: Level
) -> list[str]:
    named = [("intra-task gap", gaps.intra), ("inter-task gap", gaps.inter)]
    if decided == "each alone" or (decided == "unclear" and gaps.intra and gaps.inter):
        named.append(("joint gap", gaps.joint))
    if threshold is not None:
        named += [("mean on new inputs", found[1]), ("on new instructions", found[3])]
    told = [f"{name} {estimate}" for name, estimate in named if estimate is not None]
    return told if threshold is None else [*told, f"threshold {threshold:g}"]
