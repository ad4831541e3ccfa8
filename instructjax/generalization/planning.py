"""How many more instructions would make an interval half as wide."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.quantiles import student_t_quantile

LIMIT = 10_000


def clusters_to_halve(
    variance: Float[AnyArray, ""],
    variance_of_way: Float[AnyArray, ""],
    clusters: Int[AnyArray, ""],
    other_df: Float[AnyArray, ""],
    *,
    level: float = 0.95,
    factor: float = 0.5,
) -> Int[Array, ""]:
    """The fewest more clusters with which an interval is half as wide; -1 if 10,000 are too few.

    With m more clusters, `variance_of_way` x G / (G + m) stands for `variance_of_way`, and
    Student's t has min(G + m - 1, other_df) degrees of freedom; the rest of the variance stays.

    Args:
      variance: of the estimate.
      variance_of_way: the part that more clusters make smaller.
      clusters: G, how many there are, 2 or more.
      other_df: what the other clusters allow.
      level: of the interval.
      factor: how wide the interval may be, relative to now.

    >>> more = clusters_to_halve(jnp.array(1.0), jnp.array(1.0), jnp.array(8), jnp.array(99.0))
    >>> int(more)  # 2.365 / sqrt(8) is halved by 2.064 / sqrt(8 + 17)
    17
    >>> int(clusters_to_halve(jnp.array(1.0), jnp.array(0.5), jnp.array(8), jnp.array(99.0)))
    -1
    """
    more = jnp.arange(LIMIT + 1)
    total = clusters + more
    left = variance - variance_of_way + variance_of_way * clusters / total
    df = jnp.minimum((total - 1).astype(left.dtype), other_df)
    half = student_t_quantile((1 + level) / 2, df) * jnp.sqrt(left)
    enough = half <= factor * half[0]
    return jnp.where(enough.any(), jnp.argmax(enough), -1)
