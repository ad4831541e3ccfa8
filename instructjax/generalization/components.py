r"""Where the variance of scores lies: in c, in z, in their combination, in the rest. ANOVA.

The model is \(s_{czr} = \mu + c_c + z_z + (cz)_{cz} + e_{czr}\) with independent random effects.
From a complete grid, mean squares and what they estimate (Henderson's method; Brennan 2001,
"Generalizability Theory", chapter 3):

MS_c = Z R sum_c (m_c - m)^2 / (C - 1), sigma2_c = (MS_c - MS_cz) / (Z R), and so on. With one
response a cell, cz and e cannot be told apart: their sum is reported as cz, and e is 0. Estimates
are unbiased, and so may be negative; `clip_components` sets those to 0. For grids with holes, see
`reml`, and `reml_in_tasks` for tasks.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from instructjax.errors import UsageError
from instructjax.generalization.arrays import AnyArray


class Components(NamedTuple):
    """Variances, in squared units of the score.

    Attributes:
      instruction: of c. input: of z. interaction: of c x z (with e in it if R = 1).
      residual: of sampled responses to the same (c, z); 0 if R = 1.
    """

    instruction: Array
    input: Array
    interaction: Array
    residual: Array


class NestedComponents(NamedTuple):
    """Variances where instructions, or instructions and inputs, belong to tasks.

    Attributes:
      task: of tasks. instruction: of c in a task (0 if each task has one).
      input: of z, in a task unless inputs are crossed with tasks.
      interaction: of c x z in a task (with the residual in it where nothing is repeated).
      task_input: of task x z, where inputs are crossed with tasks, else 0.
      residual: of sampled responses to the same (c, z); 0 without repeats.
    """

    task: Array
    instruction: Array
    input: Array
    interaction: Array
    task_input: Array
    residual: Array


Parts = TypeVar("Parts", Components, NestedComponents)


def clip_components(components: Parts) -> Parts:
    """Negative estimates as 0.

    >>> [float(x) for x in clip_components(Components(*jnp.array([-0.1, 1.0, 2.0, 0.0])))]
    [0.0, 1.0, 2.0, 0.0]
    """
    return components._make(jnp.maximum(x, 0) for x in components)


def variance_components(score: Float[AnyArray, "C Z ..."]) -> Components:
    """Components of a complete crossed grid, with or without repeated responses.

    Args:
      score: instructions by inputs, 2 or more of each; a third axis for R sampled responses.

    Raises:
      UsageError: fewer than two instructions or inputs: how far they differ cannot be seen.

    >>> grid = jnp.array([[1.0, 3.0], [2.0, 4.0]])  # rows differ by 1, columns by 2, no rest
    >>> [float(x) for x in variance_components(grid)]
    [0.5, 2.0, 0.0, 0.0]
    """
    score = jnp.asarray(score)
    grid = score if score.ndim == 2 else score.mean(2)
    c, z = grid.shape
    _check_sizes(instructions=c, inputs=z)
    repeats = 1 if score.ndim == 2 else score.shape[2]
    mean = grid.mean()
    of_c, of_z = grid.mean(1), grid.mean(0)
    ms_c = z * ((of_c - mean) ** 2).sum() / (c - 1)
    ms_z = c * ((of_z - mean) ** 2).sum() / (z - 1)
    rest = grid - of_c[:, None] - of_z + mean
    ms_cz = (rest**2).sum() / ((c - 1) * (z - 1))
    residual = jnp.zeros_like(mean)
    if repeats > 1:
        residual = ((score - grid[..., None]) ** 2).sum() / (c * z * (repeats - 1))
    return Components((ms_c - ms_cz) / z, (ms_z - ms_cz) / c, ms_cz - residual / repeats, residual)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 2:
            raise UsageError(
                f"{size} of {name}: how far {name} differ cannot be seen", remedy="give 2 or more"
            )


def components_in_tasks(score: Float[AnyArray, "T C Z"]) -> NestedComponents:
    """Components of T tasks that have each a complete grid of their own C instructions, Z inputs.

    With C = 1, as in Super-NaturalInstructions (one definition a task), what an instruction adds
    is part of its task: then `input` is all that varies in a task. For tasks of different sizes,
    for
    inputs that several tasks share, and for repeated responses, see `fit_reml_in_tasks`.

    Raises:
      UsageError: fewer than two tasks, or inputs of each.

    >>> grids = jnp.array([[[1.0, 3.0], [2.0, 4.0]], [[5.0, 7.0], [6.0, 8.0]]])
    >>> [float(x) for x in components_in_tasks(grids)]  # task means 2.5 and 6.5: 8 - 0.25 - 1
    [6.75, 0.5, 2.0, 0.0, 0.0, 0.0]
    """
    score = jnp.asarray(score)
    t, c, z = score.shape
    _check_sizes(tasks=t, inputs=z)
    of_task = score.mean((1, 2))
    ms_t = c * z * ((of_task - of_task.mean()) ** 2).sum() / (t - 1)
    zero = jnp.zeros_like(ms_t)
    of_z = score.mean(1)
    ms_z = c * ((of_z - of_task[:, None]) ** 2).sum() / (t * (z - 1))
    if c == 1:
        return NestedComponents((ms_t - ms_z) / z, zero, ms_z, zero, zero, zero)
    of_c = score.mean(2)
    ms_c = z * ((of_c - of_task[:, None]) ** 2).sum() / (t * (c - 1))
    rest = score - of_c[..., None] - of_z[:, None] + of_task[:, None, None]
    ms_cz = (rest**2).sum() / (t * (c - 1) * (z - 1))
    return NestedComponents(
        (ms_t - ms_c - ms_z + ms_cz) / (c * z),
        (ms_c - ms_cz) / z,
        (ms_z - ms_cz) / c,
        ms_cz,
        zero,
        zero,
    )
