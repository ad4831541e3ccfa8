"""Where the variance lies, and what more instructions or inputs would do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int

from instructjax.generalization.components import NestedComponents
from instructjax.generalization.decision_in_tasks import (
    TaskAllocation,
    d_study_in_tasks,
    optimal_allocation_in_tasks,
)
from instructjax.generalization.reml import fit_reml
from instructjax.generalization.reml_in_tasks import fit_reml_in_tasks
from instructjax.report.grids import make_grids
from instructjax.report.numbers import show_number, show_percent
from instructjax.report.scores import CellScores
from instructjax.report.tables import Table, make_table


@dataclass(frozen=True, kw_only=True)
class VariancePart:
    """One source of variance: texts, its share of the whole, and which colour it has."""

    name: str
    kind: str
    share: float
    percent: str
    sd: str


@dataclass(frozen=True, kw_only=True)
class VarianceSection:
    """Components, and what designs would give."""

    note: str
    parts: list[VariancePart]
    table: Table
    advice: str
    plan: Table | None


def describe_variance(scores: CellScores) -> VarianceSection | None:
    """Components of c, z, c x z where inputs have several instructions; else of what there is.

    Each of the four cells has a mean of its own, which is no variance of instructions or inputs.
    """
    grids = make_grids(scores)
    if grids is None:
        return _describe_nested(scores)
    several = len(grids.tasks) > 1
    shape = (grids.mask.any(2).sum(1), grids.mask.any(1).sum(1))
    n_c, n_z = (max(2, round(float(np.median(sizes)))) for sizes in shape)
    with jax.enable_x64(True):
        score, mask, cell = map(jnp.asarray, (grids.score, grids.mask, grids.cell))
        if several:
            parts = fit_reml_in_tasks(score, mask, groups=cell).components
        else:
            # One task is given: nothing varies between tasks.
            c, z, cz, rest = fit_reml(score[0], mask[0], cell[0]).components
            parts = NestedComponents(jnp.zeros_like(c), c, z, cz, jnp.zeros_like(c), rest)
        advice, plan = _plan(parts, len(grids.tasks), n_c, n_z)
    named = [
        *([("tasks", "t", float(parts.task))] if several else []),
        ("instructions c", "c", float(parts.instruction)),
        ("inputs z", "z", float(parts.input)),
        ("combination c × z, and the rest", "cz", float(parts.interaction + parts.residual)),
    ]
    of = f" over {len(grids.tasks)} tasks, each with its own c and z" if several else ""
    note = f"Components by restricted maximum likelihood{of}, a mean for each cell."
    if grids.cut:
        note += " Of large grids, the fullest part is used."
    return _make_section(named, note, advice, plan)


def _describe_nested(scores: CellScores) -> VarianceSection | None:
    """Where no input has two instructions: between instructions, and all that is within."""
    group = np.unique(scores.instruction.astype(str), return_inverse=True)[1]
    total, groups = len(scores.value), int(group.max()) + 1
    found = one_way_in_cells(scores.value, group, scores.cell)
    if found is None:
        return None
    between, ms_within = found
    named = [("instructions c", "c", between), ("inputs z, and the rest", "z", ms_within)]
    note = (
        "No input has several instructions, so inputs, their combination with an instruction, and "
        "the rest cannot be told apart. One-way analysis of variance in each cell, pooled."
    )
    now = math.sqrt(between / groups + ms_within / total)
    more_c = math.sqrt(between / (2 * groups) + ms_within / (2 * total))
    more_z = math.sqrt(between / groups + ms_within / (2 * total))
    rows = [
        ("as now", f"{groups:,}", f"{total:,}", show_number(now, 2)),
        ("twice the instructions", f"{2 * groups:,}", f"{2 * total:,}", show_number(more_c, 2)),
        ("twice the inputs", f"{groups:,}", f"{2 * total:,}", show_number(more_z, 2)),
    ]
    plan = make_table(
        "Standard error of a mean", ("design",), ("instructions", "scores", "SE"), rows
    )
    return _make_section(
        named, note, _advise(now, {"instructions": more_c, "inputs": more_z}), plan
    )


def one_way_in_cells(
    value: Float64[np.ndarray, " n"], group: Int[np.ndarray, " n"], cell: Int[np.ndarray, " n"]
) -> tuple[float, float] | None:
    r"""Variance between groups and within them, where each cell has a mean of its own; unbiased.

    Sums of squares of the one-way analyses of the cells are added up. Between the p groups of a
    cell of n scores, sizes \(n_g\), it is \((p - 1) \sigma^2_e + (n - \sum n_g^2 / n)
    \sigma^2_g\) on average (Searle, Casella and McCulloch 1992, 3.6).

    Returns:
      None where no cell has two groups, or no group two scores in a cell.

    >>> one_way_in_cells(np.array([1.0, 3.0, 5.0, 7.0]), np.array([0, 0, 1, 1]), np.zeros(4, int))
    (7.0, 2.0)
    """
    cells, of_cell = np.unique(cell, return_inverse=True)
    pairs, of_pair, n = np.unique(
        group * len(cells) + of_cell, return_inverse=True, return_counts=True
    )
    place = pairs % len(cells)
    free = len(value) - len(pairs)
    of_cells = np.bincount(of_cell).astype(float)
    size = float((of_cells - np.bincount(place, weights=n**2) / of_cells).sum())
    if free < 1 or len(pairs) == len(cells):
        return None
    means = np.bincount(of_pair, weights=value) / n
    overall = np.bincount(of_cell, weights=value) / of_cells
    within = float(((value - means[of_pair]) ** 2).sum() / free)
    between = float((n * (means - overall[place]) ** 2).sum())
    return max(0.0, (between - (len(pairs) - len(cells)) * within) / size), within


def _plan(parts: NestedComponents, n_t: int, n_c: int, n_z: int) -> tuple[str, Table]:
    """What designs of tasks, instructions and inputs of each would give; one task is given."""
    several = n_t > 1
    size = f"{n_t} × {n_c} × {n_z}" if several else f"{n_c} × {n_z}"
    designs = {f"as now ({size})": (n_t, n_c, n_z)}
    if several:
        designs["twice the tasks"] = (2 * n_t, n_c, n_z)
    designs |= {
        "twice the instructions": (n_t, 2 * n_c, n_z),
        "twice the inputs": (n_t, n_c, 2 * n_z),
    }
    numbers = np.array(list(designs.values()), float)
    errors, best = _try_designs(parts, numbers, 1000 if several else 1)
    tried = [float(se) for se in errors]
    now, gains = tried[0], {}
    for name, se in zip(list(designs)[1:], tried[1:], strict=True):
        gains[name.removeprefix("twice the ")] = se
    found = (int(best.tasks), int(best.instructions), int(best.inputs))
    if found not in designs.values():
        designs["best for as many scores"] = found
        tried.append(float(best.se))
    rows = [
        (name, *(f"{n:,}" for n in design[0 if several else 1 :]), show_number(se, 2))
        for (name, design), se in zip(designs.items(), tried, strict=True)
    ]
    columns = ("tasks", "instructions", "inputs", "SE")[0 if several else 1 :]
    plan = make_table("Standard error of the mean", ("design",), columns, rows)
    return _advise(now, gains), plan


@partial(jax.jit, static_argnums=2)
def _try_designs(
    parts: NestedComponents, designs: Array, most_tasks: int
) -> tuple[Array, TaskAllocation]:
    """Standard errors of designs (tasks, instructions, inputs), and the best of as many scores."""
    best = optimal_allocation_in_tasks(parts, designs[0].prod(), most_tasks=most_tasks)
    return d_study_in_tasks(parts, *designs.T), best


def _advise(now: float, then: Mapping[str, float]) -> str:
    """Of what to take more, by the standard error now and with twice as many."""
    if now <= 0:
        return ""
    gains = sorted(((1 - se / now, name) for name, se in then.items()), reverse=True)
    (best, what), *others = gains
    alike = [name for gain, name in gains if best - gain < 0.03]
    if len(alike) == len(gains):
        return f"To be surer, more {' and more '.join(then)} help about alike."
    rest = ", ".join(f"twice as many {name}, {show_percent(max(x, 0.0))}" for x, name in others)
    return (
        f"To be surer, add {what}: twice as many make the standard error {show_percent(best)} "
        f"smaller; {rest}."
    )


def _make_section(
    named: list[tuple[str, str, float]], note: str, advice: str, plan: Table | None
) -> VarianceSection | None:
    whole = sum(variance for _, _, variance in named)
    if not whole > 0:
        return None
    parts = [
        VariancePart(
            name=name,
            kind=kind,
            share=round(variance / whole, 4),
            percent=show_percent(variance / whole),
            sd=show_number(math.sqrt(variance), 2),
        )
        for name, kind, variance in named
    ]
    rows = [(part.name, part.percent, part.sd) for part in parts]
    table = make_table("Where the variance lies", ("source",), ("share", "SD"), rows)
    return VarianceSection(note=note, parts=parts, table=table, advice=advice, plan=plan)
