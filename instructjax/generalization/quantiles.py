r"""Student's t under jit: its distribution function and quantiles.

With x = df / (df + t^2) and I the regularized incomplete beta function, \(\Pr(T > t) = \tfrac12
I_x(df/2, 1/2)\) for t > 0 (Abramowitz and Stegun 1964, 26.7.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, ndtr, ndtri
from jaxtyping import Array, Float

from instructjax.generalization.arrays import AnyArray

# Above this the difference from the normal distribution is below 1e-4 of the quantile.
_NORMAL = 3e4
_STEPS = 60


def student_t_cdf(
    t: Float[AnyArray, "*shape"], df: Float[AnyArray, "*shape"]
) -> Float[Array, "*shape"]:
    """Pr(T <= t) with df degrees of freedom; normal where df is above 30,000.

    >>> round(float(student_t_cdf(jnp.array(1.0), jnp.array(1.0))), 4)  # Cauchy
    0.75
    """
    t, df = jnp.broadcast_arrays(jnp.asarray(t), jnp.asarray(df))
    few = jnp.clip(df, 1e-3, _NORMAL)
    finite = jnp.where(jnp.isfinite(t), t, 1.0)
    tail = 0.5 * betainc(few / 2, jnp.full_like(few, 0.5), few / (few + finite * finite))
    tail = jnp.where(jnp.isfinite(t), tail, 0.0)
    return jnp.where(df > _NORMAL, ndtr(t), jnp.where(t > 0, 1 - tail, tail))


@jax.jit  # the loop below would be compiled anew in every call
def student_t_quantile(
    p: Float[AnyArray, ""] | float, df: Float[AnyArray, "*shape"]
) -> Float[Array, "*shape"]:
    """The t that T does not pass with probability p; infinite where df is below 1.

    Args:
      p: above 0.5 and below 1, for example 0.975.
      df: degrees of freedom.

    >>> round(float(student_t_quantile(0.975, jnp.array(7.0))), 3)
    2.365
    >>> float(student_t_quantile(0.975, jnp.array(0.0)))
    inf
    """
    df = jnp.asarray(df)
    normal = ndtri(jnp.asarray(p, df.dtype))
    # t = z exp(u): what is sought is between 0 and 7 in u even for the Cauchy distribution.
    low, high = jnp.zeros(df.shape, df.dtype), jnp.full(df.shape, 7.0, df.dtype)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        small = student_t_cdf(normal * jnp.exp(middle), df) < p
        return jnp.where(small, middle, low), jnp.where(small, high, middle)

    low, high = jax.lax.fori_loop(0, _STEPS, halve, (low, high))
    t = normal * jnp.exp((low + high) / 2)
    return jnp.where(df > _NORMAL, normal, jnp.where(df < 1, jnp.inf, t))
