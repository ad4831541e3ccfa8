r"""Variance components where instructions belong to tasks: uneven tasks, holes, repeats. REML.

\(s_{tczr} = \mu_g + t_t + c_{tc} + z + (tz) + (cz)_{tcz} + e_{tczr}\) with normal effects, as in
`reml`, and one mean or one of each group. Three designs, by what inputs belong to:

- "tasks": each task has its own inputs, crossed with its instructions (z stands for z in t);
- "instructions": each instruction has its own inputs (z stands for z in c, and there is no c x z);
- "none": the same inputs in all tasks, so that task x z is a source of its own.

In the first two, tasks are independent given the means, and the task's own variance enters each
task's terms by Sherman and Morrison's formula: with V of a task without it and B as in `GridTerms`,
\(B' V^{-1} B - \sigma^2_t b b' / (1 + \sigma^2_t a)\), a = 1' V^-1 1 and b = B' V^-1 1. In the
third, columns are independent given the effects of tasks and instructions, whose mixed model
equations (Henderson 1953) are solved.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.cluster_se import satterthwaite
from instructjax.generalization.components import NestedComponents
from instructjax.generalization.reml import (
    GridTerms,
    grid_terms,
    join_centred,
    join_terms,
    make_design,
    repeats_terms,
)
from instructjax.generalization.reml_search import maximize, standardize

InputsOf = Literal["tasks", "instructions", "none"]


class TaskRemlFit(NamedTuple):
    """What `fit_reml_in_tasks` found.

    Attributes:
      components: variances.
      mean, se: over all scores by their information, and its standard error given the components;
        with groups, of each, [4], and 0 of those without scores.
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
    groups: Int[AnyArray, "T C Z"] | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "*_"], ...]]:
    """Restricted log-likelihood, and the mean with its variance, or those of each group.

    Args:
      sd: standard deviations in the order of `NestedComponents`.
      grid: means of cells; any value where count is 0.
      count: scores in each cell.
      within: sum of squares of a task's scores around the means of their cells.
      inputs_of: see the module.
      groups: of each (t, c, z), 0 to 3: each has a mean of its own, [4]. Default: one mean.

    >>> sd, grid = jnp.zeros(6).at[0].set(1.0).at[3].set(1.0), jnp.array([[[1.0]], [[3.0]]])
    >>> value, (mean, variance) = reml_log_likelihood_in_tasks(
    ...     sd, grid, jnp.ones((2, 1, 1)), jnp.zeros(2))
    >>> round(float(value), 4)  # variances 2: -(log 2 pi + 2 log 2 + 0) / 2 - 1 / 2
    -2.1121
    >>> float(mean), float(variance)
    (2.0, 1.0)
    """
    sd, count, within = jnp.asarray(sd), jnp.asarray(count), jnp.asarray(within)
    return join_centred(
        lambda apart, design: _terms(sd, apart, count, within, design, inputs_of),
        grid,
        count,
        groups,
    )


def _terms(
    sd: Array, grid: Array, count: Array, within: Array, design: Array, inputs_of: InputsOf
) -> GridTerms:
    """Of all tasks together."""
    if inputs_of == "none":
        return _crossed_terms(sd, grid, count, within.sum(), design)
    t, c, z, cz, _, e = sd
    of_grid = jnp.stack([c, z, cz, e])
    each = jax.vmap(grid_terms, (None, 0, 0, 0, 1))(of_grid, grid, count, within, design)
    # The groups' indicators add up to that of a task.
    ones = each.products[:, 1:].sum(1)
    grow = 1 + t**2 * ones[:, 1:].sum(1)
    taken = t**2 / grow[:, None, None] * ones[:, :, None] * ones[:, None]
    terms = GridTerms(each.products - taken, each.log_det + jnp.log(grow), each.count)
    return jax.tree.map(lambda x: x.sum(0), terms)


def _crossed_terms(sd: Array, grid: Array, count: Array, within: Array, design: Array) -> GridTerms:
    """Where inputs are crossed with tasks: rows are the instructions of all tasks."""
    of_t, of_c, of_z, of_cz, of_tz, of_e = sd
    tasks, each, inputs = grid.shape
    count = count.reshape(-1, inputs)
    there = count > 0
    of_task = jnp.repeat(jnp.eye(tasks, dtype=grid.dtype), each, axis=0)  # [T C, T]
    variance = of_cz**2 + of_e**2 / jnp.where(there, count, 1)
    weight = jnp.where(there, 1 / variance, 0)
    columns = jnp.concatenate([grid[None], design]).reshape(-1, *there.shape) * there
    # A column's covariance, given effects of rows: cells, task x z, z. Inverted in that order.
    information = of_task.T @ weight
    shrink = of_tz**2 / (1 + of_tz**2 * information)
    ones = weight * (1 - of_task @ (shrink * information))
    shared = of_z**2 / (1 + of_z**2 * ones.sum(0))

    def solve(v):
        part = weight * (v - of_task @ (shrink * (of_task.T @ (weight * v))))
        return part - ones * shared * part.sum(0)

    solved = jax.vmap(solve)(columns)  # [1 + K, T C, Z]
    same = of_task @ of_task.T
    rows = jnp.diag(weight.sum(1)) - same * ((weight * (of_task @ shrink)) @ weight.T)
    rows -= (ones * shared) @ ones.T
    effects = jnp.concatenate([of_t * of_task, of_c * jnp.eye(len(rows), dtype=rows.dtype)], axis=1)
    normal = jnp.eye(effects.shape[1], dtype=rows.dtype) + effects.T @ rows @ effects
    factor = jnp.linalg.cholesky(normal)
    half = jax.scipy.linalg.solve_triangular(factor, effects.T @ solved.sum(2).T, lower=True)
    products = jnp.einsum("icz,jcz->ij", solved, columns) - half.T @ half
    log_det_within, square_within = repeats_terms(of_e, count, within)
    log_det = 2 * jnp.log(jnp.diag(factor)).sum() + jnp.where(there, jnp.log(variance), 0).sum()
    log_det += jnp.log1p(of_tz**2 * information).sum()
    log_det += jnp.log1p(of_z**2 * ones.sum(0)).sum()
    return GridTerms(
        products.at[0, 0].add(square_within),
        log_det + log_det_within,
        jnp.where(there, count, 0).sum(),
    )


@partial(jax.jit, static_argnames="inputs_of")
def fit_reml_in_tasks(
    score: Float[AnyArray, "T C Z ..."],
    mask: Bool[AnyArray, "T C Z ..."] | None = None,
    *,
    inputs_of: InputsOf = "tasks",
    groups: Int[AnyArray, "T C Z"] | None = None,
) -> TaskRemlFit:
    """Components of tasks with instructions of their own, with any scores missing.

    Tasks of different sizes are padded, and the padding masked. What cannot be told apart is
    reported once, and the other is 0: `instruction` is 0 where no task has two; c x z is part of
    `input` where inputs belong to instructions, or no input has two instructions of a task. A
    source of which no group has two (tasks, instructions, inputs) is 0: the groups' means take up
    what they differ by.

    In float32 about three digits; for more, call it under `jax.enable_x64(True)` with float64.

    Args:
      score: tasks by instructions by inputs; a fourth axis for sampled responses. Two tasks or
        more.
      mask: scores that are there; default: all.
      inputs_of: what inputs belong to, "tasks", "instructions" or "none"; see the module.
      groups: of each (t, c, z), 0 to 3, such as the cells of seen and unseen c and z: what their
        means differ by is no variance of tasks, instructions or inputs. Default: one mean.

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
    design = make_design(groups, values[..., 0])
    grid, count, within, unit = standardize(values, mask, design)
    there = count > 0
    in_groups = design * there > 0  # [K, T, C, Z]
    several_t = (in_groups.any((2, 3)).sum(1) > 1).any()
    several_c = (in_groups.any(3).sum((1, 2)) > 1).any()
    if inputs_of == "none":
        several_z = (in_groups.any((1, 2)).sum(1) > 1).any()
    else:
        several_z = (in_groups.any(2).sum((1, 2)) > 1).any()
    tasks = there.any((1, 2)).sum()
    columns = there.sum(1)
    shared = (there.any(1).sum(0) > 1).any() & (inputs_of == "none")  # an input in two tasks
    free_z = (columns > 1).any() & (inputs_of != "instructions")
    free = jnp.stack(
        [
            (tasks > 1) & several_t,
            (there.any(2).sum(1) > 1).any() & (there.sum(2) > 1).any() & several_c,
            (shared if inputs_of == "none" else free_z) & several_z,
            jnp.array(True),
            shared & free_z,
            (count > 1).any(),
        ]
    )

    def likelihood(sd):
        return join_terms(_terms(sd, grid, count, within, design, inputs_of))

    sd, value, mean, variance = maximize(likelihood, free & unit.varies, 3)
    t, c, z, cz, tz, e = (sd * unit.scale) ** 2
    if inputs_of == "none":
        # With one instruction a task, what is left is task x z.
        parts = (z, jnp.where(free_z, cz, 0), jnp.where(free_z, tz, cz))
    else:
        parts = (jnp.where(free_z, z, cz), jnp.where(free_z, cz, 0), tz)
    components = NestedComponents(t, c, *parts, e)
    value, mean, variance = unit.restore(value, mean, variance)
    if inputs_of == "none":
        df = jax.vmap(_satterthwaite, (None, 0, 0))(components, in_groups, variance)
    else:
        df = jnp.maximum(in_groups.any((2, 3)).sum(1) - 1, 0).astype(variance.dtype)
    if groups is None:
        mean, variance, df = mean[0], variance[0], df[0]
    return TaskRemlFit(components, mean, jnp.sqrt(variance), df, value)


def _satterthwaite(components: NestedComponents, there: Array, variance: Array) -> Array:
    """By the mean squares of tasks, inputs and their combination that a complete grid has."""
    t, z = (jnp.maximum(there.any(axes).sum(), 1) for axes in ((1, 2), (0, 1)))
    rows, total = jnp.maximum(there.any(2).sum(), 1), jnp.maximum(there.sum(), 1)
    rest = components.task_input / (t * z) + components.interaction / (rows * z)
    rest += components.residual / total
    of_t = components.task / t + components.instruction / rows + rest
    of_z = components.input / z + rest
    free_t, free_z = jnp.maximum(t - 1, 1), jnp.maximum(z - 1, 1)
    parts, df = jnp.stack([of_t, of_z, rest]), jnp.stack([t - 1, z - 1, free_t * free_z])
    return jnp.minimum(satterthwaite(variance, parts, df), total - 1)
