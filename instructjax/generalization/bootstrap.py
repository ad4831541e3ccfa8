r"""Bootstraps for scores that share instructions and inputs: intervals of any statistic.

Crossed: every instruction gets a random weight and every input another, and a score counts with
their product. "pigeonhole" draws instructions with replacement and, independently, inputs (Owen
2007, "The pigeonhole bootstrap"): weights are counts. "exponential" has weights from Exp(1) (Owen
and Eckles 2012, "Bootstrapping data arrays of arbitrary order"): no cell ever loses all its weight,
and few instructions give no ties. Both are a little conservative: the variance of the c x z part
counts up to three times, which `rescaled_interval` takes out. Nested (tasks, then inputs in each):
`nested_bootstrap`.

Sums of weighted scores are matrix products, a block of draws at a time: nothing of size draws x
scores exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.quantiles import student_t_quantile

Kind = Literal["exponential", "pigeonhole"]
BLOCK = 250


def draw_weights(
    key: Array, draws: int, count: int, kind: Kind = "exponential"
) -> Float[Array, "B G"]:
    """Random weights with mean 1 for `count` clusters, independent between draws.

    >>> draw_weights(jax.random.key(0), 2, 5, "pigeonhole").sum(1).tolist()
    [5.0, 5.0]
    """
    if kind == "exponential":
        return jax.random.exponential(key, (draws, count))
    drawn = jax.random.randint(key, (draws, count), 0, count)
    rows = jnp.arange(draws)[:, None]
    return jnp.zeros((draws, count)).at[rows, drawn].add(1)


def crossed_bootstrap(
    key: Array,
    score: Float[AnyArray, "*K C Z"],
    mask: Bool[AnyArray, "*K C Z"] | None = None,
    statistic: Callable[[Array], Any] | None = None,
    *,
    draws: int = 2000,
    kind: Kind = "exponential",
) -> Any:
    """Bootstrap draws of the mean of a crossed grid, or of a statistic of several grids' means.

    Args:
      key: random key.
      score: instructions by inputs; before them, any number of models, cells, strategies that
        share them and get the same weights (so differences are paired).
      mask: scores that are there; default: all.
      statistic: takes the means, [*K], gives any pytree; default: the means.
      draws: how many, B.
      kind: of weights.

    Returns:
      The statistic of each draw, [B, ...]. A grid without scores has mean 0, and so has one in a
      pigeonhole draw that took none of its scores.

    >>> score = jnp.stack([jnp.ones((3, 4)), jnp.zeros((3, 4))])
    >>> crossed_bootstrap(jax.random.key(0), score, statistic=lambda m: m[0] - m[1], draws=2)
    Array([1., 1.], dtype=float32)
    """
    score = jnp.asarray(score)
    there = jnp.ones(score.shape, bool) if mask is None else jnp.asarray(mask)
    shape, (c, z) = score.shape[:-2], score.shape[-2:]
    values = jnp.where(there, score, 0).reshape(-1, c, z)
    counts = there.astype(score.dtype).reshape(-1, c, z)
    complete = mask is None

    def block(key):
        key_c, key_z = jax.random.split(key)
        of_c = draw_weights(key_c, BLOCK, c, kind).astype(score.dtype)
        of_z = draw_weights(key_z, BLOCK, z, kind).astype(score.dtype)

        def add(grid):
            return ((of_c @ grid) * of_z).sum(-1)

        sums = lax.map(add, values)
        if complete:
            weights = jnp.broadcast_to(of_c.sum(-1) * of_z.sum(-1), sums.shape)
        else:
            weights = lax.map(add, counts)
        means = jnp.where(weights > 0, sums / jnp.where(weights > 0, weights, 1), 0)
        return means.T.reshape(BLOCK, *shape)

    return _in_blocks(key, draws, block, statistic)


def bootstrap_records(
    key: Array,
    score: Float[AnyArray, " N"],
    ids: Sequence[Int[AnyArray, " N"]],
    share: Float[AnyArray, "N K"] | None = None,
    statistic: Callable[[Array], Any] | None = None,
    *,
    num_clusters: Sequence[int],
    draws: int = 2000,
    kind: Kind = "exponential",
) -> Any:
    """The same for flat records with any number of ways; costs draws x N.

    Args:
      key: random key.
      score: N of them.
      ids: one array a way: instructions, inputs, ..., from 0.
      share: what each score counts in each of K means (`cells.cell_weights`); default: one mean.
      statistic: takes the K means, gives any pytree; default: the means.
      num_clusters: how many ids each way has.
      draws: how many, B.
      kind: of weights.

    >>> c, z = jnp.array([0, 0, 1]), jnp.array([0, 1, 0])
    >>> bootstrap_records(jax.random.key(0), jnp.ones(3), (c, z), num_clusters=(2, 2), draws=2)
    Array([[1.],
           [1.]], dtype=float32)
    """
    score = jnp.asarray(score)
    parts = jnp.ones((len(score), 1)) if share is None else jnp.asarray(share)
    both = jnp.concatenate([parts * score[:, None], parts], axis=1)

    def block(key):
        weights = jnp.ones((BLOCK, len(score)))
        for one, way, count in zip(jax.random.split(key, len(ids)), ids, num_clusters, strict=True):
            weights *= draw_weights(one, BLOCK, count, kind)[:, way]
        sums, totals = jnp.split(weights @ both, 2, axis=1)
        return jnp.where(totals > 0, sums / jnp.where(totals > 0, totals, 1), 0)

    return _in_blocks(key, draws, block, statistic)


def nested_bootstrap(
    key: Array,
    score: Float[AnyArray, "*K T I"],
    mask: Bool[AnyArray, "*K T I"] | None = None,
    statistic: Callable[[Array], Any] | None = None,
    *,
    draws: int = 2000,
    kind: Kind = "exponential",
    macro: bool = True,
) -> Any:
    """Tasks (or instructions) that have each their own inputs: tasks are drawn, then inputs.

    Args:
      key: random key.
      score: tasks by inputs; input i of one task has nothing to do with input i of another.
      mask: scores that are there, for tasks of different sizes; default: all.
      statistic: takes the means, [*K], gives any pytree; default: the means.
      draws: how many, B.
      kind: of weights.
      macro: mean over tasks of their means; otherwise over all scores.

    Returns:
      The statistic of each draw, [B, ...]. In a pigeonhole draw, a task none of whose scores was
      drawn does not count.

    >>> score = jnp.array([[1.0, 1.0], [1.0, 9.0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> nested_bootstrap(jax.random.key(0), score, mask, draws=2).tolist()
    [1.0, 1.0]
    """
    score = jnp.asarray(score)
    there = jnp.ones(score.shape, bool) if mask is None else jnp.asarray(mask)
    shape, (t, i) = score.shape[:-2], score.shape[-2:]
    values = jnp.where(there, score, 0).reshape(-1, t, i)
    counts = there.astype(score.dtype).reshape(-1, t, i)

    def block(key):
        key_t, key_i = jax.random.split(key)
        of_task = draw_weights(key_t, BLOCK, t, kind).astype(score.dtype)

        def one_task(args):
            key, value, count = args
            weights = draw_weights(key, BLOCK, i, kind).astype(score.dtype)
            return value @ weights.T, count @ weights.T

        keys = jax.random.split(key_i, t)
        sums, totals = lax.map(one_task, (keys, values.swapaxes(0, 1), counts.swapaxes(0, 1)))
        of_task = of_task.T[:, None] * (totals > 0)
        if macro:
            sums, totals = sums / jnp.where(totals > 0, totals, 1), jnp.ones_like(totals)
        above, below = (of_task * sums).sum(0), (of_task * totals).sum(0)
        means = jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
        return means.T.reshape(BLOCK, *shape)

    return _in_blocks(key, draws, block, statistic)


def percentile_interval(
    draws: Float[AnyArray, "B ..."], level: float = 0.95
) -> tuple[Float[Array, "*_"], Float[Array, "*_"]]:
    """The middle `level` of bootstrap draws.

    >>> low, high = percentile_interval(jnp.arange(101.0), 0.9)
    >>> float(low), float(high)
    (5.0, 95.0)
    """
    ends = jnp.array([(1 - level) / 2, (1 + level) / 2])
    low, high = jnp.quantile(jnp.asarray(draws), ends, axis=0)
    return low, high


def rescaled_interval(
    estimate: Float[AnyArray, "*shape"],
    draws: Float[AnyArray, "B ..."],
    se: Float[AnyArray, "*shape"],
    df: Float[AnyArray, "*shape"],
    level: float = 0.95,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""The draws' shape with a standard error's width: for gaps, and wherever clusters are few.

    \(\hat\theta + \frac{t_{df}}{z} \frac{se}{sd^*} (\theta^*_q - \hat\theta)\), with q the
    quantiles of the draws, sd* their root mean square around the estimate, t / z what Student's
    quantile is to the normal one (rescaled bootstrap: Rao and Wu 1988). Percentiles alone are too
    narrow where clusters are few, and too wide where what c and z bring cancels and only their
    combination is left, which product weights count three times (`experiments/coverage.py`).

    Args:
      estimate: of the data.
      draws: bootstrap draws of it.
      se, df: cluster-robust (`multiway_cluster_se`, `contrasts.contrast_se`); with less than one
        degree of freedom the interval is infinite.
      level: of the interval.

    >>> draws = 1 + 3 * jax.random.normal(jax.random.key(0), (4000,))
    >>> low, high = rescaled_interval(*map(jnp.array, (1.0, draws, 0.5, 7.0)))
    >>> bool(abs(high - (1 + 2.365 * 0.5)) < 0.06), bool(abs(low - (1 - 2.365 * 0.5)) < 0.06)
    (True, True)
    """
    middle, df = jnp.asarray(estimate), jnp.asarray(df)
    apart = jnp.asarray(draws) - middle
    spread = jnp.sqrt((apart**2).mean(0))
    ends = jnp.stack(percentile_interval(apart, level)) / jnp.where(spread > 0, spread, 1)
    p = (1 + level) / 2
    wider = student_t_quantile(p, jnp.maximum(df, 1)) / ndtri(p)
    low, high = middle + ends * wider * se
    return jnp.where(df < 1, -jnp.inf, low), jnp.where(df < 1, jnp.inf, high)


def bootstrap_t_interval(
    estimate: Float[AnyArray, "*_"],
    draws: Float[AnyArray, "B ..."],
    clusters: int,
    level: float = 0.95,
) -> tuple[Float[Array, "*_"], Float[Array, "*_"]]:
    """estimate -+ t x se, se the standard deviation of the draws x sqrt(G / (G - 1)).

    With few clusters percentiles are too narrow, since a bootstrap's variance lacks the factor
    G / (G - 1) and its tails are the normal's; Student's t has G - 1 degrees of freedom.

    Args:
      estimate: of the data.
      draws: bootstrap draws of it.
      clusters: G, of the way that has fewest.
      level: of the interval.

    >>> draws = jax.random.normal(jax.random.key(0), (4000,))
    >>> low, high = bootstrap_t_interval(jnp.array(0.0), draws, 8)
    >>> bool(abs(high - 2.365 * (8 / 7) ** 0.5) < 0.1), bool(low == -high)
    (True, True)
    """
    apart = jnp.asarray(draws) - estimate
    se = jnp.sqrt((apart**2).mean(0) * clusters / max(clusters - 1, 1))
    half = student_t_quantile((1 + level) / 2, jnp.full_like(se, clusters - 1)) * se
    return estimate - half, estimate + half


def _in_blocks(
    key: Array,
    draws: int,
    block: Callable[[Array], Array],
    statistic: Callable[[Array], Any] | None,
) -> Any:
    blocks = -(-draws // BLOCK)
    means = lax.map(block, jax.random.split(key, blocks))
    means = means.reshape(blocks * BLOCK, *means.shape[2:])[:draws]
    return means if statistic is None else jax.vmap(statistic)(means)
