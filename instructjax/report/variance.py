"""Where the variance lies, and what more instructions or inputs would do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.generalization.components import Components
from instructjax.generalization.decision_study import d_study, optimal_allocation
from instructjax.generalization.reml import fit_reml
from instructjax.report.grids import make_grids
from instructjax.report.numbers import show_number, show_percent
from instructjax.report.scores import CellScores
from instructjax.report.tables import Table, make_table

# Made once, so that grids of a size that was seen before need no compilation.
_fit = jax.jit(jax.vmap(fit_reml))


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

    Differences between the four cells' means are taken out first.
    """
    grids = make_grids(scores, center=True)
    if grids is None:
        return _describe_nested(scores)
    with jax.enable_x64(True):
        fits = _fit(jnp.asarray(grids.score), jnp.asarray(grids.mask))
        parts = np.asarray(jnp.stack(fits.components))
        means, errors = np.asarray(fits.mean), np.asarray(fits.se)
    c, z, cz, rest = (float(np.nanmean(row)) for row in parts)
    between = 0.0
    if len(grids.tasks) > 1:
        between = max(0.0, float(means.var(ddof=1) - np.nanmean(errors**2)))
    named = [
        ("tasks", "t", between),
        ("instructions c", "c", c),
        ("inputs z", "z", z),
        ("combination c × z, and the rest", "cz", cz + rest),
    ]
    named = [one for one in named if one[1] != "t" or len(grids.tasks) > 1]
    shape = (grids.mask.any(2).sum(1), grids.mask.any(1).sum(1))
    n_c, n_z = (max(2, round(float(np.median(sizes)))) for sizes in shape)
    several = len(grids.tasks) > 1
    advice, plan = _plan(Components(*map(jnp.asarray, (c, z, cz, rest))), n_c, n_z, several)
    of = f"; mean of {len(grids.tasks)} tasks" if several else ""
    note = f"Components by restricted maximum likelihood{of}, cells' means taken out."
    if grids.cut:
        note += " Of large grids, the fullest part is used."
    return _make_section(named, note, advice, plan)


def _describe_nested(scores: CellScores) -> VarianceSection | None:
    """Where no input has two instructions: between instructions, and all that is within."""
    means = np.bincount(scores.cell, weights=scores.value)
    means = means / np.maximum(np.bincount(scores.cell), 1)
    value = scores.value - means[scores.cell]
    group, count = np.unique(
        scores.instruction.astype(str), return_inverse=True, return_counts=True
    )[1:]
    total, groups = len(value), len(count)
    if groups < 2 or total <= groups:
        return None
    of_group = np.bincount(group, weights=value) / count
    ms_between = float((count * (of_group - value.mean()) ** 2).sum() / (groups - 1))
    ms_within = float(((value - of_group[group]) ** 2).sum() / (total - groups))
    # The usual size of a group in unbalanced one-way data (Searle, Casella and McCulloch 1992).
    size = (total - float((count**2).sum()) / total) / (groups - 1)
    between = max(0.0, (ms_between - ms_within) / size)
    named = [("instructions c", "c", between), ("inputs z, and the rest", "z", ms_within)]
    note = (
        "No input has several instructions, so inputs, their combination with an instruction, and "
        "the rest cannot be told apart. One-way analysis of variance, cells' means taken out."
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
    return _make_section(named, note, _advise(now, more_c, more_z), plan)


def _plan(parts: Components, n_c: int, n_z: int, several: bool) -> tuple[str, Table]:
    designs = {
        f"as now ({n_c} × {n_z})": (n_c, n_z),
        "twice the instructions": (2 * n_c, n_z),
        "twice the inputs": (n_c, 2 * n_z),
    }
    with jax.enable_x64(True):
        best = optimal_allocation(parts, float(n_c * n_z))
        best_c, best_z = int(best.instructions), int(best.inputs)
        if best_c < 1000:
            designs["best for as many scores"] = (best_c, best_z)
        errors = [float(d_study(parts, *design)) for design in designs.values()]
    rows = [
        (name, f"{c:,}", f"{z:,}", show_number(se, 2))
        for (name, (c, z)), se in zip(designs.items(), errors, strict=True)
    ]
    title = f"Standard error of {'a task’s' if several else 'the'} mean"
    plan = make_table(title, ("design",), ("instructions", "inputs", "SE"), rows)
    return _advise(*errors[:3]), plan


def _advise(now: float, more_instructions: float, more_inputs: float) -> str:
    if now <= 0:
        return ""
    gain_c, gain_z = 1 - more_instructions / now, 1 - more_inputs / now
    if abs(gain_c - gain_z) < 0.03:
        return "To be surer, more instructions and more inputs help about alike."
    what, gain, other = (
        ("instructions", gain_c, gain_z) if gain_c > gain_z else ("inputs", gain_z, gain_c)
    )
    return (
        f"To be surer, add {what}: twice as many make the standard error {show_percent(gain)} "
        f"smaller; twice as many {'inputs' if what == 'instructions' else 'instructions'}, "
        f"{show_percent(max(other, 0.0))}."
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
