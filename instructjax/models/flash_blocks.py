"""What kernels of attention share: the products and masks of one block of queries and keys."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from instructjax.models.attention_tiles import MASKED, capped
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
    """Who sees whom.

    Attributes:
      ends, depth: of the tokens of each row; see `attention`.
      q_depth: of the queries. They stand one after the other in pieces of equal length, which may
        be some of those of the row.
      starts: where in the row each piece begins; ascending.
      width: of the window.
    """

    ends: Int[Array, "B T"]
    depth: Int[Array, "B T"]
    q_depth: Int[Array, "B Q"]
    starts: Int[Array, " P"]
    width: Int[Array, " 1"]

    @property
    def piece(self) -> int:
        """Tokens of a piece."""
        return self.q_depth.shape[1] // len(self.starts)

    def places(self, size: int) -> tuple[Int[Array, " I"], Int[Array, " J"]]:
        """Which block of the row each block of queries is, and for each block of the row the first
        block of queries that is no earlier."""
        places = (self.starts[:, None] + jnp.arange(0, self.piece, size)).reshape(-1) // size
        row = jnp.arange(self.ends.shape[1] // size)
        return places, (places < row[:, None]).sum(1, dtype=places.dtype)


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


def start_sums(size: int, values: int):
    """(maxima [size, 1], sums of weights [size, 1], weighted values) before the first block."""
    top = jnp.full((size, 1), MASKED, jnp.float32)
    return top, jnp.zeros((size, 1), jnp.float32), jnp.zeros((size, values), jnp.float32)


def add_block(sums, q, k, v, seen, options: Options):
    """The running softmax of queries, with one more block of keys and values."""
    top, total, acc = sums
    scores, _ = score_pairs(q, k, options)
    scores = jnp.where(seen, scores, MASKED)
    new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
    keep = jnp.exp(top - new_top)
    total = total * keep + weights.sum(-1, keepdims=True)
    return new_top, total, acc * keep + dot(weights.astype(v.dtype), v, (1, 0))


def finish_sums(sums):
    """(what queries receive, log-normalizers [size, 1]); zeros for one that has seen nothing."""
    top, total, acc = sums
    whole = jnp.where(total == 0, 1.0, total)
    return acc / whole, top + jnp.log(whole)


def slope_pairs(left, right, left_values, right_values, seen, norm, delta, options: Options):
    """(weights, slopes of the products) of rows against rows, computed again.

    Args:
      left, right: queries and keys, or keys and queries.
      left_values, right_values: in the place of queries the slopes of what they receive, in that
        of keys their values.
      seen, norm, delta: of the queries, along their axis.
    """
    scores, slope = score_pairs(left, right, options)
    weights = jnp.where(seen, jnp.exp(scores - norm), 0.0)
    d_weights = dot(left_values, right_values, (1, 1))
    d_scores = weights * (d_weights - delta) * options.scale
    return weights, d_scores if slope is None else d_scores * slope
