"""Curves s = s_inf - A n^-alpha: the best of each alpha, of all, and which others fit as well."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Curve(NamedTuple):
    """The best curve of one alpha: a + b rise(t), 0 at the first n and growing as t there.

    So small alphas cost no digits: s_inf is a + b / alpha.
    """

    parameters: Array
    square: Array  # of what it leaves
    slope: Array  # b
    loose: Array  # of s_inf, of A and of b: variances given alpha, over the residual's
    gradient: Array  # of s_inf, A, alpha by a, b, alpha
    jacobian: Array
    is_flat: Array


class Curves(NamedTuple):
    t: Array  # log n since the first
    y: Array
    w: Array
    first: Array

    @classmethod
    def of(cls, x: Array, y: Array, w: Array) -> Curves:
        first = jnp.where(w > 0, x, jnp.inf).min()
        return cls(jnp.where(w > 0, x - first, 0), jnp.where(w > 0, y, 0), w, first)

    def at(self, log_alpha: Array) -> Curve:
        t, y, w, first = self
        alpha, total = jnp.exp(log_alpha), w.sum()
        rise = -jnp.expm1(-alpha * t) / alpha
        mean_rise, mean_y = (w * rise).sum() / total, (w * y).sum() / total
        apart = rise - mean_rise
        spread = (w * apart**2).sum()
        b = (w * apart * (y - mean_y)).sum() / spread
        square = (w * (y - mean_y - b * apart) ** 2).sum()
        scale = jnp.exp(alpha * first) / alpha
        to_end = 1 / alpha - mean_rise
        bend = (t * jnp.exp(-alpha * t) - rise) / alpha
        columns = jnp.stack([jnp.ones_like(t), rise, b * bend], axis=1)
        by_alpha = (-b / alpha**2, scale * b * (first - 1 / alpha))
        return Curve(
            parameters=jnp.stack([mean_y + b * to_end, b * scale, alpha]),
            square=square,
            slope=b,
            loose=jnp.stack([1 / total + to_end**2 / spread, scale**2 / spread, 1 / spread]),
            gradient=jnp.array(
                [[1, 1 / alpha, by_alpha[0]], [0, scale, by_alpha[1]], [0, 0, 1]], y.dtype
            ),
            jacobian=jnp.sqrt(w)[:, None] * columns,
            is_flat=jnp.abs(b) * rise.max() <= 4 * jnp.finfo(y.dtype).eps * jnp.abs(y).max(),
        )


def least_alpha(curves: Curves, grid: Float[Array, " S"]) -> Float[Array, ""]:
    """The log alpha that leaves the least."""
    place = jnp.argmin(jax.vmap(curves.at)(grid).square)
    step = grid[1] - grid[0]
    golden = (jnp.sqrt(5.0) - 1) / 2

    def narrow(_, ends):
        low, high = ends
        one, two = high - golden * (high - low), low + golden * (high - low)
        left = curves.at(one).square < curves.at(two).square
        return jnp.where(left, low, one), jnp.where(left, two, high)

    low, high = lax.fori_loop(0, 40, narrow, (grid[place] - step, grid[place] + step))
    return jnp.clip((low + high) / 2, grid[0], grid[-1])


def profile_ends(
    curves: Curves, grid: Float[Array, " S"], best: Float[Array, ""], limit: Float[Array, ""]
) -> tuple[Float[Array, " 3"], Float[Array, " 3"]]:
    """Ends of s_inf, A and alpha over the curves that leave no more than limit."""
    fits = jax.vmap(curves.at)(grid).square <= limit
    step = grid[1] - grid[0]
    lowest = jnp.minimum(best, jnp.where(fits, grid, jnp.inf).min())
    highest = jnp.maximum(best, jnp.where(fits, grid, -jnp.inf).max())

    def halve(_, ends):
        inner, outer = ends
        middle = (inner + outer) / 2
        inside = jax.vmap(curves.at)(middle).square <= limit
        return jnp.where(inside, middle, inner), jnp.where(inside, outer, middle)

    inner = jnp.stack([lowest, highest])
    outer = jnp.clip(inner + step * jnp.array([-1, 1]), grid[0], grid[-1])
    inner, _ = lax.fori_loop(0, 30, halve, (inner, outer))
    within = jax.vmap(curves.at)(jnp.linspace(inner[0], inner[1], len(grid)))
    room = jnp.sqrt(jnp.maximum(limit - within.square, 0)[:, None] * within.loose)
    middle = jnp.stack([*within.parameters[:, :2].T, within.slope], axis=1)
    low, high = (middle - room).min(0), (middle + room).max(0)
    # Below the search s_inf and A are b / alpha; above it A is exp(alpha log n) at the first n.
    no_low, no_high = fits[0], fits[-1]
    open_ends = jnp.stack([no_low, no_low | (no_high & (curves.first > 0))])
    low_line = jnp.where(open_ends & (low[2] < 0), -jnp.inf, low[:2])
    high_line = jnp.where(open_ends & (high[2] > 0), jnp.inf, high[:2])
    return (
        jnp.append(low_line, jnp.where(no_low, -jnp.inf, jnp.exp(inner[0]))),
        jnp.append(high_line, jnp.where(no_high, jnp.inf, jnp.exp(inner[1]))),
    )


def spread_of(gradient: Float[Array, "P P"], jacobian: Float[Array, "K P"]) -> Float[Array, " P"]:
    """Square roots of the diagonal of G (J'J)^-1 G'; infinite where J'J is singular."""
    size = jnp.sqrt((jacobian**2).sum(0))
    triangle = jnp.linalg.qr(jacobian / jnp.where(size > 0, size, 1), mode="r")
    least = jnp.abs(jnp.diag(triangle)).min()
    singular = least <= len(jacobian) * jnp.finfo(jacobian.dtype).eps
    scaled = (gradient / jnp.where(size > 0, size, 1)).T
    safe = jnp.where(singular, jnp.eye(len(gradient), dtype=jacobian.dtype), triangle)
    half = jax.scipy.linalg.solve_triangular(safe, scaled, trans=1)
    spread = jnp.sqrt((half**2).sum(0))
    return jnp.where(singular, jnp.inf, spread)
