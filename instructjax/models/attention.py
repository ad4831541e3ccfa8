"""Who attends to whom, and the two forms that compute it.

A batch is rows of tokens. Each token k carries `ends[k]`, the first index of its row that no
longer sees it, and query q attends to k iff k <= q < ends[k]. One rule covers a causal sequence
(`ends` is its length), several sequences packed in a row (`ends` is where each stops), a tree of
shared prefixes laid out depth first (`ends` is where the token's subtree stops), and padding
(`ends` = 0: seen by nobody).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from instructjax.models.attention_tiles import Tiles, attend_tiles
from instructjax.models.linear import precision_of


def visible(ends: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """visible[b, q, k]: may query q see key k.

    >>> visible(jnp.array([[2, 2, 3]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    index = jnp.arange(ends.shape[1])
    causal = index[:, None] >= index[None, :]
    return causal & (index[:, None] < ends[:, None, :])


def attend_dense(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K D"],
    ends: Int[Array, "B T"],
) -> Float[Array, "N H D"]:
    """The reference: softmax(q k / sqrt(D)) v over visible keys, the softmax in float32."""
    rows, length = ends.shape
    q, k, v = (x.reshape(rows, length, *x.shape[1:]) for x in (q, k, v))
    kv_heads = k.shape[2]
    q = q.reshape(rows, length, kv_heads, -1, q.shape[-1])
    einsum = partial(
        jnp.einsum, precision=precision_of(q.dtype), preferred_element_type=jnp.float32
    )
    scores = einsum("bqhgd,bkhd->bhgqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(visible(ends)[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = einsum("bhgqk,bkhd->bqhgd", weights, v).astype(v.dtype)
    return out.reshape(rows * length, -1, out.shape[-1])


def attend(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K D"],
    ends: Int[Array, "B T"],
    tiles: Tiles,
    *,
    tile: int,
) -> Float[Array, "N H D"]:
    """Attention in the form that the platform runs best, chosen when the program is lowered."""
    return lax.platform_dependent(
        q,
        k,
        v,
        ends,
        tiles,
        cpu=lambda q, k, v, ends, tiles: attend_tiles(q, k, v, tiles, tile=tile),
        default=lambda q, k, v, ends, tiles: attend_dense(q, k, v, ends),
    )
