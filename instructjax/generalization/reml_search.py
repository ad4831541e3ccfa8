"""The search for variance components that maximize a restricted likelihood.

Standard deviations are the parameters: the likelihood is an even, smooth function of them, so that
0 is no boundary. Damped Newton steps on the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from instructjax.generalization.arrays import AnyArray

STEPS = 100


class Unit(NamedTuple):
    """What scores were divided by, so that steps and tolerances fit any score.

    Attributes: centre: of the scores of each group; scale: of what is left; varies: whether they
      do; free: how many scores there are beyond the groups' means.
    """

    centre: Array
    scale: Array
    varies: Array
    free: Array

    def restore(self, value: Array, mean: Array, variance: Array) -> tuple[Array, Array, Array]:
        """Log-likelihood, means and their variances in units of the score.

        Scores that do not vary have no density: their log-likelihood is infinite.
        """
        value = jnp.where(self.varies, value - self.free * jnp.log(self.scale), jnp.inf)
        mean = jnp.where(self.varies, mean * self.scale, 0) + self.centre
        return value, mean, jnp.where(self.varies, variance * self.scale**2, 0)


def standardize(
    values: Float[Array, "*tasks C Z R"],
    mask: Bool[AnyArray, ...] | None,
    design: Float[Array, "K *tasks C Z"],
) -> tuple[Float[Array, "*tasks C Z"], Float[Array, "*tasks C Z"], Float[Array, "*tasks"], Unit]:
    """Means and counts of cells, and a grid's sum of squares in cells, in standard deviations.

    Args:
      values, mask: scores, and which are there.
      design: indicators of groups; scores are taken from their group's mean.
    """
    there = jnp.ones(values.shape, bool)
    if mask is not None:
        there = jnp.asarray(mask).reshape(values.shape)
    known = jnp.where(there, values, 0)
    sizes = jnp.einsum("k...,...r->k", design, there.astype(values.dtype))
    sums = jnp.einsum("k...,...r->k", design, known)
    centre = sums / jnp.maximum(sizes, 1)
    apart = jnp.where(there, values - jnp.tensordot(centre, design, 1)[..., None], 0)
    free = jnp.maximum(sizes.sum() - (sizes > 0).sum(), 0)
    scale = jnp.sqrt((apart**2).sum() / jnp.maximum(free, 1))
    # Equal numbers differ from their mean by rounding.
    varies = scale > 8 * jnp.finfo(values.dtype).eps * jnp.abs(centre).max()
    scale = jnp.where(varies, scale, 1)
    apart = jnp.where(varies, apart / scale, 0)
    count = there.sum(-1).astype(values.dtype)
    grid = apart.sum(-1) / jnp.maximum(count, 1)
    within = jnp.where(there, (apart - grid[..., None]) ** 2, 0).sum((-3, -2, -1))
    return grid, count, within, Unit(centre, scale, varies, free)


def maximize(
    likelihood: Callable[[Array], tuple[Array, tuple[Array, ...]]], free: Array, rest: int
) -> tuple[Array, Array, Array, Array]:
    """Standard deviations that maximize a restricted likelihood of scores with variance 1.

    Args:
      likelihood: of standard deviations; gives the log-likelihood, and the mean and its variance.
      free: which are sought; the others are 0.
      rest: which one may not vanish, for a likelihood of scores without any rest is infinite.

    Returns:
      The standard deviations, and what `likelihood` gives there.
    """

    def fill(sd):
        used = jnp.where(free, sd, 0)
        least = jnp.finfo(sd.dtype).eps
        return used.at[rest].set(jnp.sqrt(used[rest] ** 2 + least))

    start = jnp.where(free, 0.5, 0.0)
    sd = jnp.where(free, _minimize(lambda sd: -likelihood(fill(sd))[0], start), 0)
    # The search comes close to 0 without end: so little of the scores' variance 1 is none.
    sd = jnp.where(sd**2 < jnp.finfo(sd.dtype).eps, 0, sd)
    value, (mean, variance) = likelihood(fill(sd))
    return sd, value, mean, variance


def _minimize(loss, start):
    """Newton's steps with Levenberg's damping: shorter where the loss would not fall."""
    eye = jnp.eye(len(start), dtype=start.dtype)

    def slope(x):
        value, g = jax.value_and_grad(loss)(x)
        return g, (value, g)

    expand = jax.jacfwd(slope, has_aux=True)  # one program for value, gradient and Hessian

    def step(state):
        count, x, value, damping, _ = state
        h, (value_here, g) = expand(x)
        value = jnp.where(count == 0, value_here, value)
        values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(h), h, 0) + 1e-9 * eye)
        curvature = jnp.abs(values) + damping
        move = vectors @ ((vectors.T @ g) / curvature)
        move *= jnp.minimum(1, 0.5 / jnp.maximum(jnp.abs(move).max(), 1e-9))
        # At 0 an even function has no slope: where it bends down, 0 is a ridge to step off.
        ridge = (jnp.abs(x) < 1e-2) & (jnp.diag(h) < 0)
        move = jnp.where(ridge, -0.1 / (1 + damping), move)
        new = loss(x - move)
        good = jnp.isfinite(new) & (new <= value)
        still = good & (jnp.abs(move).max() < 10 * jnp.finfo(x.dtype).eps)  # none on a ridge
        return (
            count + 1,
            jnp.where(good, x - move, x),
            jnp.where(good, new, value),
            jnp.clip(jnp.where(good, damping / 4, damping * 8), 1e-8, 1e12),
            still,
        )

    def go_on(state):
        count, _, _, damping, still = state
        return (count < STEPS) & (damping < 1e10) & ~still

    first = (jnp.array(0), start, jnp.zeros((), start.dtype), jnp.array(1e-2, start.dtype))
    return lax.while_loop(go_on, step, (*first, jnp.array(False)))[1]
