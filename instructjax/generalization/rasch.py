r"""Completing a sparse grid of right and wrong answers with the Rasch model.

\(\Pr(s_{cz} = 1) = \sigma(\theta_c - \beta_z)\): how well an instruction works, how hard an input
is (Rasch 1960). As in PromptEval (Polo et al. 2024, arXiv 2405.17202), it is fitted on the cells
that were evaluated, and the others get its probabilities, so that quantiles over instructions cost
a fraction of the grid. A normal prior keeps what is always right or always wrong finite (maximum a
posteriori; Mislevy 1986); shifts of all parameters are pinned by it too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from instructjax.generalization.arrays import AnyArray

STEPS = 50


class RaschFit(NamedTuple):
    """Attributes: ability of each instruction, difficulty of each input (mean 0), in logits."""

    ability: Float[Array, " C"]
    difficulty: Float[Array, " Z"]


def rasch_fit(
    score: Float[AnyArray, "C Z"],
    mask: Bool[AnyArray, "C Z"] | None = None,
    *,
    prior_sd: float = 3.0,
) -> RaschFit:
    """Newton's method on the penalized log-likelihood, which is concave.

    Args:
      score: 0 or 1 (or a share between).
      mask: cells that were evaluated; default: all.
      prior_sd: standard deviation of the normal prior of both, around the overall logit and 0.

    >>> grid = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    >>> fit = rasch_fit(grid)
    >>> bool(fit.ability[0] > fit.ability[1]), bool(fit.difficulty[2] > fit.difficulty[0])
    (True, True)
    """
    score = jnp.asarray(score)
    there = jnp.ones(score.shape, bool) if mask is None else jnp.asarray(mask)
    weight = there.astype(score.dtype)
    values = jnp.where(there, score, 0)
    mean = (values.sum() + 0.5) / (weight.sum() + 1)
    base = jnp.log(mean / (1 - mean))
    ridge = 1 / prior_sd**2

    def step(_, state):
        ability, difficulty = state
        p = jax.nn.sigmoid(base + ability[:, None] - difficulty)
        rest, curve = weight * (values - p), weight * p * (1 - p)
        g_c, g_z = rest.sum(1) - ridge * ability, -rest.sum(0) - ridge * difficulty
        h_c, h_z = curve.sum(1) + ridge, curve.sum(0) + ridge
        # Inputs are eliminated: their block of the Hessian is diagonal.
        small = jnp.diag(h_c) - (curve / h_z) @ curve.T
        move_c = jnp.linalg.solve(small, g_c + curve @ (g_z / h_z))
        move_z = (g_z + curve.T @ move_c) / h_z
        limit = jnp.maximum(jnp.abs(move_c).max(), jnp.abs(move_z).max())
        size = jnp.minimum(1, 2 / jnp.maximum(limit, 1e-9))
        return ability + size * move_c, difficulty + size * move_z

    start = jnp.zeros_like(values[:, 0]), jnp.zeros_like(values[0])
    ability, difficulty = lax.fori_loop(0, STEPS, step, start)
    shift = difficulty.mean()
    return RaschFit(base + ability - shift, difficulty - shift)


def rasch_complete(
    score: Float[AnyArray, "C Z"], mask: Bool[AnyArray, "C Z"], *, prior_sd: float = 3.0
) -> Float[Array, "C Z"]:
    """The grid with the model's probabilities in its holes; what was evaluated stays.

    >>> grid = rasch_complete(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[True, True],
    ...     [True, False]]))
    >>> grid[0].tolist(), bool(grid[1, 1] < 0.5)
    ([1.0, 0.0], True)
    """
    fit = rasch_fit(score, mask, prior_sd=prior_sd)
    p = jax.nn.sigmoid(fit.ability[:, None] - fit.difficulty)
    return jnp.where(mask, score, p)
