r"""Variance components where instructions belong to tasks: uneven tasks, holes, repeats. REML.

\(s_{tczr} = \mu + t_t + c_{tc} + z + (tz) + (cz)_{tcz} + e_{tczr}\) with normal effects, as in
`reml`. Three designs, by what inputs belong to:

- "tasks": each task has its own inputs, crossed with its instructions (z stands for z in t);
- "instructions": each instruction has its own inputs (z stands for z in c, and there is no c x z);
- "none": the same inputs in all tasks, so that task x z is a source of its own.

In the first two, tasks are independent given the mean, and the task's own variance enters each
task's terms by Sherman and Morrison's formula: with a = 1' V^-1 1 of a task without it,
\(a / (1 + \sigma^2_t a)\), and so on. In the third, columns are independent given the effects of
tasks and instructions, whose mixed model equations (Henderson 1953) are solved.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import satterthwaite
from instructjax.generalization.components import NestedComponents
from instructjax.generalization.reml import GridTerms, grid_terms, join_terms, repeats_terms
from instructjax.generalization.reml_search import maximize, standardize

InputsOf = Literal["tasks", "instructions", "none"]


class TaskRemlFit(NamedTuple):
    """What `fit_reml_in_tasks` found.

    Attributes:
      components: variances.
      mean, se: over all scores by their information, and its standard error given the components.
      df: degrees of freedom of the standard error: T - 1; where inputs are shared by the tasks, by
        Satterthwaite (1946) over tasks and inputs.
      log_likelihood: restricted.
    """

    components: NestedComponents
    mean: Array
    se: Array
    df: Array
    log_likelihood: Array


def reml_log_likelihood_in_tasks(
    sd: Float[AnyArray, " 6"],
    grid: Float[AnyArray, "T C Z"],
    count: Float[AnyArray, "T C Z"],
    within: Float[AnyArray, " T"],
    inputs_of: InputsOf = "tasks",
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], ...]]:
    """Restricted log-likelihood, and the mean with its variance.

    Args:
      sd: standard deviations in the order of `NestedComponents`.
      grid: means of cells; any value where count is 0.
      count: scores in each cell.
      within: sum of squares of a task's scores around the means of their cells.
      inputs_of: see the module.

    >>> sd, grid = jnp.zeros(6).at[0].set(1.0).at[3].set(1.0), jnp.array([[[1.0]], [[3.0]]])
    >>> value, (mean, variance) = reml_log_likelihood_in_tasks(
    ...     sd, grid, jnp.ones((2, 1, 1)), jnp.zeros(2))
    >>> round(float(value), 4)  # variances 2: -(log 2 pi + 2 log 2 + 0) / 2 - 1 / 2
    -2.1121
    >>> float(mean), float(variance)
    (2.0, 1.0)
    """
    sd, count = jnp.asarray(sd), jnp.asarray(count)
    centre = (count * jnp.where(count > 0, grid, 0)).sum() / jnp.maximum(count.sum(), 1)
    grid = jnp.asarray(grid) - centre
    if inputs_of == "none":
        terms = _crossed_terms(sd, grid, count, jnp.asarray(within).sum())
    else:
        t, c, z, cz, _, e = sd
        of_grid = jnp.stack([c, z, cz, e])
        each = jax.vmap(grid_terms, (None, 0, 0, 0))(of_grid, grid, count, jnp.asarray(within))
        shrink = 1 / (1 + t**2 * each.ones)
        terms = GridTerms(
            each.ones * shrink,
            each.linear * shrink,
            each.square - t**2 * each.linear**2 * shrink,
            each.log_det - jnp.log(shrink),
            each.count,
        )
        terms = jax.tree.map(jnp.sum, terms)
    value, (mean, variance) = join_terms(terms)
    return value, (mean + centre, variance)


def _crossed_terms(sd: Array, grid: Array, count: Array, within: Array) -> GridTerms:
    """Where inputs are crossed with tasks: rows are the instructions of all tasks."""
    of_t, of_c, of_z, of_cz, of_tz, of_e = sd
    tasks, each, inputs = grid.shape
    count, grid = (x.reshape(-1, inputs) for x in (count, grid))
    of_task = jnp.repeat(jnp.eye(tasks, dtype=grid.dtype), each, axis=0)  # [T C, T]
    there = count > 0
    variance = of_cz**2 + of_e**2 / jnp.where(there, count, 1)
    weight = jnp.where(there, 1 / variance, 0)
    y = jnp.where(there, grid, 0)
    # A column's covariance, given effects of rows: cells, task x z, z. Inverted in that order.
    information = of_task.T @ weight
    shrink = of_tz**2 / (1 + of_tz**2 * information)
    ones = weight * (1 - of_task @ (shrink * information))
    shared = of_z**2 / (1 + of_z**2 * ones.sum(0))

    def solve(v):
        part = weight * (v - of_task @ (shrink * (of_task.T @ (weight * v))))
        return part - ones * shared * part.sum(0)

    solved, solved_ones = solve(y), solve(jnp.ones_like(y))
    same = of_task @ of_task.T
    rows = jnp.diag(weight.sum(1)) - same * ((weight * (of_task @ shrink)) @ weight.T)
    rows -= (ones * shared) @ ones.T
    effects = jnp.concatenate([of_t * of_task, of_c * jnp.eye(len(y), dtype=y.dtype)], axis=1)
    normal = jnp.eye(effects.shape[1], dtype=y.dtype) + effects.T @ rows @ effects
    factor = jnp.linalg.cholesky(normal)
    right = effects.T @ jnp.stack([solved.sum(1), solved_ones.sum(1)], axis=1)
    half = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    fitted = half.T @ half
    log_det_within, square_within = repeats_terms(of_e, count, within)
    log_det = 2 * jnp.log(jnp.diag(factor)).sum() + jnp.where(there, jnp.log(variance), 0).sum()
    log_det += jnp.log1p(of_tz**2 * information).sum()
    log_det += jnp.log1p(of_z**2 * ones.sum(0)).sum()
    log_det += log_det_within
    return GridTerms(
        solved_ones.sum() - fitted[1, 1],
        solved.sum() - fitted[0, 1],
        (solved * y).sum() - fitted[0, 0] + square_within,
        log_det,
        jnp.where(there, count, 0).sum(),
    )


def fit_reml_in_tasks(
    score: Float[AnyArray, "T C Z ..."],
    mask: Bool[AnyArray, "T C Z ..."] | None = None,
    *,
    inputs_of: InputsOf = "tasks",
) -> TaskRemlFit:
    """Components of tasks with instructions of their own, with any scores missing.

    Tasks of different sizes are padded, and the padding masked. What cannot be told apart is
    reported once, and the other is 0: `instruction` is 0 where no task has two; c x z is part of
    `input` where inputs belong to instructions, or no input has two instructions of a task.

    In float32 about three digits; for more, call it under `jax.enable_x64(True)` with float64.

    Args:
      score: tasks by instructions by inputs; a fourth axis for sampled responses. Two tasks or
        more.
      mask: scores that are there; default: all.
      inputs_of: what inputs belong to, "tasks", "instructions" or "none"; see the module.

    Raises:
      UsageError: fewer than two tasks.

    >>> means = jnp.array([[[1.0, 3.0], [2.0, 4.5]], [[5.0, 7.0], [6.0, 8.5]]])
    >>> [round(float(x), 2) for x in fit_reml_in_tasks(means).components[:4]]  # as of ANOVA
    [6.36, 0.75, 2.5, 0.06]
    """
    score = jnp.asarray(score)
    if score.shape[0] < 2:
        raise UsageError(
            "one task tells nothing of the variance of tasks", remedy="use fit_reml for it"
        )
    values = score[..., None] if score.ndim == 3 else score
    grid, count, within, unit = standardize(values, mask)
    there = count > 0
    tasks = there.any((1, 2)).sum()
    columns = there.sum(1)
    shared = (there.any(1).sum(0) > 1).any() & (inputs_of == "none")  # an input in two tasks
    free_z = (columns > 1).any() & (inputs_of != "instructions")
    free = jnp.stack(
        [
            tasks > 1,
            (there.any(2).sum(1) > 1).any() & (there.sum(2) > 1).any(),
            shared if inputs_of == "none" else free_z,
            jnp.array(True),
            shared & free_z,
            (count > 1).any(),
        ]
    )

    def likelihood(sd):
        return reml_log_likelihood_in_tasks(sd, grid, count, within, inputs_of)

    sd, value, mean, variance = maximize(likelihood, free & unit.varies, 3)
    t, c, z, cz, tz, e = (sd * unit.scale) ** 2
    if inputs_of == "none":
        # With one instruction a task, what is left is task x z.
        parts = (z, jnp.where(free_z, cz, 0), jnp.where(free_z, tz, cz))
    else:
        parts = (jnp.where(free_z, z, cz), jnp.where(free_z, cz, 0), tz)
    components = NestedComponents(t, c, *parts, e)
    value, mean, variance = unit.restore(value, mean, variance)
    df = (tasks - 1).astype(variance.dtype)
    if inputs_of == "none":
        df = _satterthwaite(components, there, variance)
    return TaskRemlFit(components, mean, jnp.sqrt(variance), df, value)


def _satterthwaite(components: NestedComponents, there: Array, variance: Array) -> Array:
    """By the mean squares of tasks, inputs and their combination that a complete grid has."""
    t, z = there.any((1, 2)).sum(), there.any((0, 1)).sum()
    rows = there.any(2).sum()
    rest = components.task_input / (t * z) + components.interaction / (rows * z)
    rest += components.residual / jnp.maximum(there.sum(), 1)
    of_t = components.task / t + components.instruction / rows + rest
    of_z = components.input / z + rest
    free_t, free_z = jnp.maximum(t - 1, 1), jnp.maximum(z - 1, 1)
    parts, df = jnp.stack([of_t, of_z, rest]), jnp.stack([t - 1, z - 1, free_t * free_z])
    return jnp.minimum(satterthwaite(variance, parts, df), there.sum() - 1)
