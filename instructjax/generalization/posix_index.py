r"""POSIX, the prompt sensitivity index (Chatterjee et al. 2024, arXiv 2410.02185).

For prompts x_1..x_N of one intent, and y_j the model's own response to x_j, of \(L_j\) tokens,

\(\psi = \frac{1}{N(N-1)} \sum_i \sum_j \frac{1}{L_j} |\log P(y_j|x_i) - \log P(y_j|x_j)|\),

and POSIX is the mean of psi over sets of prompts. The published code computes something else: rows
and columns change places (two responses under one prompt are compared) and all lengths are one
constant; `published_code=` gives that, to reproduce its numbers.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from instructjax.generalization.arrays import AnyArray


def posix(
    log_prob: Float[AnyArray, "P N N"],
    length: Integer[AnyArray, "P N"],
    mask: Bool[AnyArray, "P N"] | None = None,
    *,
    published_code: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, " P"]]:
    """POSIX in nats a token, and psi of each set of prompts.

    Args:
      log_prob: [p, i, j] is log P(y_j | x_i) in set p, nats.
      length: tokens of y_j.
      mask: prompts that are there, where sets differ in size; default: all. Sets with fewer than
        two do not count.
      published_code: the code's `max_new_tokens`, to compute what it computes.

    >>> log_prob = jnp.array([[[-2.0, -6.0], [-3.0, -4.0]]])
    >>> value, _ = posix(log_prob, jnp.array([[1, 2]]))  # (|-3 + 2| / 1 + |-6 + 4| / 2) / 2
    >>> float(value)
    1.0
    >>> float(posix(log_prob, jnp.array([[1, 2]]), published_code=4)[0])  # (4 + 1) / 4 / 2
    0.625
    """
    log_prob = jnp.asarray(log_prob)
    there = jnp.ones(length.shape, bool) if mask is None else jnp.asarray(mask)
    own = jnp.diagonal(log_prob, axis1=1, axis2=2)
    if published_code is None:
        apart = jnp.abs(log_prob - own[:, None, :]) / jnp.maximum(length, 1)[:, None, :]
    else:
        apart = jnp.abs(log_prob - own[:, :, None]) / published_code
    both = there[:, :, None] & there[:, None, :]
    count = there.sum(1)
    pairs = count * (count - 1)
    psi = jnp.where(both, apart, 0).sum((1, 2)) / jnp.maximum(pairs, 1)
    return psi.sum() / jnp.maximum((pairs > 0).sum(), 1), psi
