"""Who attends to whom, and the forms that compute it.

A batch is rows of tokens. Each token k carries `ends[k]`, the first index of its row that no
longer sees it, and query q attends to k iff k <= q < ends[k]. One rule covers a causal sequence
(`ends` is its length), several sequences packed in a row (`ends` is where each stops), a tree of
shared prefixes laid out depth first (`ends` is where the token's subtree stops), and padding
(`ends` = 0: seen by nobody).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from instructjax.models import attention_flash, flash_gpu, flash_tpu
from instructjax.models.attention_split import UNSPLIT, AttentionSplit
from instructjax.models.attention_tiles import attend_tiles
from instructjax.models.linear import precision_of
from instructjax.models.tiles import Tiles

# Longest row that is attended to whole. Memory grows with its square, and little of a longer row is
# seen by any one query where it holds a tree.
WHOLE = 2048

# What attention does with queries, keys and values (and `sinks`, `scale`, `softcap`, where
# a family has them): gives what each query sees, and what is to be kept of the layer.
Look = Callable[..., tuple[Array, Any]]


def visible(ends: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """visible[b, q, k]: may query q see key k.

    >>> visible(jnp.array([[2, 2, 3]]))[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    index = jnp.arange(ends.shape[1])
    causal = index[:, None] >= index[None, :]
    return causal & (index[:, None] < ends[:, None, :])


class Window(NamedTuple):
    """A query sees keys less than `tokens` before it in its own sequence.

    Attributes:
      tokens: the width, the query's own place included; may differ from layer to layer.
      positions: depth of each token in its own sequence.
    """

    tokens: Int[Array, ""]
    positions: Int[Array, "B T"]


def attend_dense(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K V"],
    ends: Int[Array, "B T"],
    *,
    window: Window | None = None,
    sinks: Float[Array, " H"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "N H V"]:
    """The reference: softmax(scale q k) v over visible keys, the softmax in float32.

    Args:
      q, k, v: N = B * T tokens, flat.
      ends: who sees whom.
      window: how far back queries see; all the way if there is none.
      sinks: one more logit a head, which takes part in the softmax and has no value.
      scale: of scores, 1 / sqrt(D) if None.
      softcap: c in c tanh(score / c), after the scale.
    """
    rows, length = ends.shape
    q, k, v = (x.reshape(rows, length, *x.shape[1:]) for x in (q, k, v))
    kv_heads = k.shape[2]
    q = q.reshape(rows, length, kv_heads, -1, q.shape[-1])
    einsum = partial(
        jnp.einsum, precision=precision_of(q.dtype), preferred_element_type=jnp.float32
    )
    scores = einsum("bqhgd,bkhd->bhgqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = visible(ends)
    if window is not None:
        depth = window.positions
        seen &= depth[:, :, None] - depth[:, None, :] < window.tokens
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is None:
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    else:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        sink = jnp.broadcast_to(sink, (*scores.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, sink], -1), axis=-1)[..., :-1]
        weights = weights.astype(v.dtype)
    out = einsum("bhgqk,bkhd->bqhgd", weights, v).astype(v.dtype)
    return out.reshape(rows * length, -1, out.shape[-1])


def kernel_block(platform: str, length: int, width: int, itemsize: int) -> int | None:
    """Queries and keys a block of a platform's kernel; None where it has none for such rows.

    Args:
      platform: "tpu" or "gpu"; others have none.
      length: of rows, in tokens; of their pieces where they are split, see `attention_split`.
      width: features of the wider of keys and values.
      itemsize: bytes of a feature.
    """
    if os.environ.get("INSTRUCTJAX_KERNELS") == "off":
        return None
    if platform == "gpu":
        return flash_gpu.block_size(length, width, itemsize)
    return flash_tpu.block_size(length) if platform == "tpu" else None


def attend(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K V"],
    ends: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    tiles: Tiles,
    *,
    tile: int,
    window: Int[Array, ""] | None = None,
    sinks: Float[Array, " H"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    split: AttentionSplit = UNSPLIT,
) -> Float[Array, "N H V"]:
    """Attention in the form that the platform runs best, chosen when the program is lowered.

    On CPU in tiles; on TPUs and GPUs by a kernel, `attention_flash`, where rows divide into its
    blocks and heads are not too wide. Else whole, or in tiles where rows are longer than `WHOLE`:
    their memory grows with the row, not with its square. With `INSTRUCTJAX_KERNELS=off` in the
    environment there are no kernels. Where tokens of a row are split over devices, each computes
    what its own queries see, by the kernel if pieces of rows divide into its blocks, or in tiles.

    Args:
      q, k, v, ends, sinks, scale, softcap: as for `attend_dense`; tokens lie by device, as `split`
        lays them out, and so do those of the result; those of `ends` and `positions` by row.
      positions: depth of each token in its own sequence.
      tiles, tile: of `find_tiles`.
      window: a query sees keys less than so many tokens before it.
      split: how heads and queries are split over devices.
    """
    options: dict[str, Any] = {"scale": scale, "softcap": softcap}

    def in_tiles(q, k, v, ends, positions, tiles, window, sinks):
        more = {"tile": tile, "window": window, "sinks": sinks, "split": split, "rows": len(ends)}
        return attend_tiles(q, k, v, tiles, **more, **options)

    def whole(q, k, v, ends, positions, tiles, window, sinks):
        near = None if window is None else Window(window, positions)
        return attend_dense(q, k, v, ends, window=near, sinks=sinks, **options)

    operands = (q, k, v, ends, positions, tiles, window, sinks)
    length = ends.shape[1]
    forms = {"cpu": in_tiles, "default": whole}
    if length > WHOLE or split.parts > 1:
        forms["default"] = in_tiles

    def flash(platform, q, k, v, ends, positions, tiles, window, sinks):
        more = {"window": window, "sinks": sinks, "split": split, "platform": platform}
        return attention_flash.attend_flash(q, k, v, ends, positions, **more, **options)

    head = max(q.shape[-1], v.shape[-1]), q.dtype.itemsize
    for lowered_for, platform in (("tpu", "tpu"), ("cuda", "gpu")):
        if kernel_block(platform, split.piece(length), *head):
            forms[lowered_for] = partial(flash, platform)
    return lax.platform_dependent(*operands, **forms)
