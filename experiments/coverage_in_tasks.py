"""Designs of the coverage study in which instructions and inputs belong to tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.generalization import (
    bootstrap,
    cells,
    cluster_se,
    contrasts,
    paired,
    reml_in_tasks,
)

DRAWS = 500
# Standard deviations of tasks, of instructions, of inputs, of the rest, and of what new inputs and
# new instructions cost in a task more or less than in others.
SD_T, SD_C, SD_Z, SD_REST, SD_COST = 0.15, 0.1, 0.25, 0.35, 0.05

# Of each interval its ends, or estimate, standard error and degrees of freedom.
Run = Callable[[jax.Array], dict[str, tuple[jax.Array, ...]]]
Sizes = Literal["equal", "uneven", "very uneven"]


def gaps_by_task(seen: int, unseen: int, c: int, z: int, sizes: Sizes) -> Run:
    """Whole tasks are held out, as in Super-NaturalInstructions: cells 0, 1 and 3; no gap.

    Each task has c instructions and at most z inputs of its own, half of them new in seen tasks.
    """
    tasks, _, of_z = (x.ravel() for x in np.indices((seen + unseen, c, z)))
    cell = np.where(tasks >= seen, 3, of_z % 2)
    gaps = {"intra": (1, -1, 0, 0), "inter": (0, 1, 0, -1), "joint": (1, 0, 0, -1)}
    return _gaps_in_tasks((seen + unseen, c, z), sizes, cell, gaps)


def gaps_by_wording(t: int, c: int, z: int, sizes: Sizes) -> Run:
    """Half of the wordings and half of the inputs of each task are new: all four cells; no gap."""
    _, of_c, of_z = (x.ravel() for x in np.indices((t, c, z)))
    cell = 2 * (of_c % 2) + of_z % 2
    gaps = dict(zip(cells.Gaps._fields, cells.CONTRASTS, strict=True))
    return _gaps_in_tasks((t, c, z), sizes, cell, gaps)


def number_of_inputs(tasks: int, most: int, sizes: Sizes) -> np.ndarray:
    """Of each task: the same, from all to two fifths, or from all to under a tenth.

    >>> number_of_inputs(7, 40, "very uneven").tolist()
    [40, 24, 14, 9, 5, 3, 40]
    """
    place = np.arange(tasks)
    if sizes == "uneven":
        return most - place % 4 * most // 5
    return np.round(most * 0.6 ** (place % 6 * (sizes == "very uneven"))).astype(int)


def draw_in_tasks(key: jax.Array, shape: tuple[int, int, int], new: np.ndarray) -> jax.Array:
    """Scores of tasks x instructions x inputs, flat; `new` tells new instructions, new inputs."""
    t, c, z = shape
    keys = jax.random.split(key, 5)
    score = SD_T * jax.random.normal(keys[0], (t, 1, 1))
    score += SD_C * jax.random.normal(keys[1], (t, c, 1))
    score += SD_Z * jax.random.normal(keys[2], (t, 1, z))
    score += SD_REST * jax.random.normal(keys[3], shape)
    cost = SD_COST * jax.random.normal(keys[4], (2, t))[:, np.arange(t).repeat(c * z)]
    return score.ravel() + (cost * new).sum(0)


def _gaps_in_tasks(
    shape: tuple[int, int, int],
    sizes: Sizes,
    cell: np.ndarray,
    gaps: dict[str, tuple[int, ...]],
) -> Run:
    """By the functions, and the way of clustering, that `analyze` takes for such a table."""
    tasks, _, of_z = (x.ravel() for x in np.indices(shape))
    kept = of_z < number_of_inputs(shape[0], shape[2], sizes)[tasks]
    tasks, cell_of, each = jnp.asarray(tasks), jnp.asarray(cell), jnp.arange(tasks.size)
    shares = {
        kind: cells.cell_weights(cell_of, tasks, weights=kind, mask=jnp.asarray(kept))
        for kind in get_args(cells.Weights)
    }
    matrix = jnp.array(list(gaps.values()), float)
    seen = jnp.array([[True, True, False, False]])
    new = np.stack([cell // 2, cell % 2])

    def run(key):
        score, found = draw_in_tasks(key, shape, new), {}
        for kind, share in shares.items():
            influence, gap = cells.cell_influence(score, share), matrix @ (share.T @ score)
            ways = {"t (default)": tasks, **({"naive": each} if kind == "micro" else {})}
            for name, way in ways.items():
                covariance = contrasts.cell_covariance(influence, share, (way,))
                se, df = contrasts.contrast_se(covariance, matrix, seen)
                for i, of in enumerate(gaps):
                    found[f"{of} gap, {kind}, {name}"] = (gap[i], se[i], df[i])
        return found

    return run


def difference_in_tasks(t: int, c: int, z: int) -> Run:
    """Two models on tasks with instructions and inputs of their own; tasks suit one or the other.

    Tasks differ in size; as of cells of a report, with micro and with macro weights.
    """
    tasks, of_c, of_z = (jnp.asarray(x.ravel()) for x in np.indices((t, c, z)))
    kept = of_z < z - 3 * (tasks % 3)  # uneven tasks
    ways = (tasks * c + of_c, tasks * z + of_z, tasks)
    cell = jnp.full(len(tasks), 3)
    share = {
        kind: cells.cell_weights(cell, tasks, weights=kind, mask=kept)
        for kind in get_args(cells.Weights)
    }
    row, seen = jnp.array([[0.0, 0.0, 0.0, 1.0]]), jnp.zeros((1, 4), bool)

    def run(key):
        of_task, of_instruction, of_input, rest = jax.random.split(key, 4)
        apart = 0.1 * jax.random.normal(of_task, (t, 1, 1))
        apart += 0.05 * jax.random.normal(of_instruction, (t, c, 1))
        apart += 0.2 * jax.random.normal(of_input, (t, 1, z))
        apart = (apart + 0.35 * jax.random.normal(rest, (t, c, z))).ravel()
        zero = jnp.zeros_like(apart)
        found = {}
        for name, some in (("without tasks", ways[:2]), ("instructions, inputs, tasks, t", ways)):
            paired_in = paired.compare_paired(apart, zero, some, kept)
            found[f"paired, clusters: {name}"] = paired_in[:3]
        for kind, weight in share.items():
            e = cells.cell_influence(apart, weight)
            covariance = contrasts.cell_covariance(e, weight, (tasks,))
            se, df = contrasts.contrast_se(covariance, row, seen)
            found[f"report's difference, {kind}, t (default)"] = (
                weight[:, 3] @ apart,
                se[0],
                df[0],
            )
        return found

    return run


def mean_of_uneven_tasks(t: int, c: int, z: int) -> Run:
    """Tasks with instructions and inputs of their own, three cells in ten missing."""

    def run(key):
        of_task, of_c, of_z, rest, holes = jax.random.split(key, 5)
        score = 0.15 * jax.random.normal(of_task, (t, 1, 1))
        score += 0.1 * jax.random.normal(of_c, (t, c, 1))
        score += 0.25 * jax.random.normal(of_z, (t, 1, z))
        score += 0.35 * jax.random.normal(rest, (t, c, z))
        there = jax.random.uniform(holes, (t, c, z)) > 0.3
        fit = reml_in_tasks.fit_reml_in_tasks(score, there)
        return {"REML in tasks, t": (fit.mean, fit.se, fit.df)}

    return run


def mean_of_tasks(t: int, i: int) -> Run:
    """Tasks with inputs of their own, a definition each."""
    of_task = jnp.repeat(jnp.arange(t), i)

    def run(key):
        one, two, boot = jax.random.split(key, 3)
        grid = 0.15 * jax.random.normal(one, (t, 1)) + 0.4 * jax.random.normal(two, (t, i))
        flat = grid.ravel()
        mean, e = flat.mean(), cluster_se.mean_influence(flat)
        drawn = bootstrap.nested_bootstrap(boot, grid, draws=DRAWS)
        return {
            "naive": (mean, jnp.sqrt((e**2).sum()), jnp.array(float(t * i - 1))),
            "clusters: tasks, t (default)": (mean, *cluster_se.multiway_cluster_se(e, (of_task,))),
            "percentile, nested bootstrap": bootstrap.percentile_interval(drawn),
            "nested bootstrap, t (default)": bootstrap.bootstrap_t_interval(mean, drawn, t),
        }

    return run
