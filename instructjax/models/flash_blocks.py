"""What kernels of attention share: the products and masks of one block of queries and keys."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from instructjax.models.attention_tiles import capped
from instructjax.models.linear import precision_of


class Options(NamedTuple):
    """What a kernel is made for.

    Attributes:
      scale, softcap: as for `attend_dense`.
      windowed: whether there is a window; without one its width is not looked at.
      interpret: run the operations one by one, on any device.
      platform: whose kernel it is.
    """

    scale: float
    softcap: float | None
    windowed: bool
    interpret: Any
    platform: Literal["tpu", "gpu"] = "tpu"


class Marks(NamedTuple):
    """A number a token, along either axis of the scores; again for each part of the heads."""

    row: Int[Array, "B P T"]
    column: Int[Array, "B P T 1"]

    @classmethod
    def of(cls, x: Int[Array, "B T"], parts: int) -> Marks:
        """The same for each of `parts`."""
        row = jnp.broadcast_to(x[:, None], (len(x), parts, x.shape[1]))
        return cls(row, row[..., None])


def dot(a, b, contract: tuple[int, int]):
    dims = (((contract[0],), (contract[1],)), ((), ()))
    precision = precision_of(a.dtype)
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def score_pairs(left, right, options: Options):
    """(scores, their slope by the cap or None) of rows against rows."""
    return capped(dot(left, right, (1, 1)) * options.scale, options.softcap)


def mask_pairs(q_block, k_block, size, ends, q_depth, k_depth, width, *, keys_first: bool = False):
    """[size, size]: which query sees which key; queries first, or keys first."""
    shape = (size, size)
    q_axis, k_axis = (1, 0) if keys_first else (0, 1)
    query = q_block * size + lax.broadcasted_iota(jnp.int32, shape, q_axis)
    key = k_block * size + lax.broadcasted_iota(jnp.int32, shape, k_axis)
    seen = (key <= query) & (query < ends)
    return seen if width is None else seen & (q_depth - k_depth < width)


def any_seen(q_block, k_block, size, ends, q_depth, k_depth, width):
    """Whether the blocks may hold a pair that sees each other."""
    some = (k_block <= q_block) & (jnp.max(ends) > q_block * size)
    if width is None:
        return some
    # Within a sequence depths grow with the place; over several, this may keep too much.
    return some & (jnp.min(q_depth) - jnp.max(k_depth) < width)


def slope_scores(weights, d_weights, delta, slope, scale):
    d_scores = weights * (d_weights - delta) * scale
    return d_scores if slope is None else d_scores * slope
