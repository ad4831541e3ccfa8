"""Attention for CPUs: a loop over square tiles of queries and keys, skipping what is not seen.

A batch is cut into tiles as `models.tiles` describes, so that a token is computed from the same
numbers in the same order whether its prefix is shared or not, and whatever else is in the row: bit
for bit the same. Only the tiles on a token's own path are visited; the cost of packing is nil.
Short branches of one prefix go over its tiles together: each query is a row of a product, and what
the other rows are makes no difference to it.

The backward pass recomputes each tile's probabilities from the saved log-normalizers (Dao et al.
2022), so that no [T, T] array exists.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from instructjax.models.linear import precision_of
from instructjax.models.tiles import Tiles, gather, lanes_of, pad, put, scatter_add, wide

MASKED = -1e30
# What a backward pass that computes layers again may keep of attention; see `models.remat`.
ATTENDED = "attended"


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend(q, k, v, sinks, window, tiles, tile, scale, softcap):
    return _forward(q, k, v, sinks, window, tiles, tile, scale, softcap)[0]


def attend_tiles(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K V"],
    tiles: Tiles,
    *,
    tile: int,
    window: Int[Array, ""] | None = None,
    sinks: Float[Array, " H"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "N H V"]:
    """As `attend_dense`, with zeros for tokens that nobody sees.

    Args:
      q, k, v: N = B * T tokens, flat.
      tiles: of `find_tiles` with the same `tile`; one serves all layers.
      tile: queries and keys a tile.
      window: a query sees keys less than so many tokens before it; tiles beyond are not visited.
      sinks: one more logit a head, which takes part in the softmax and has no value.
      scale: of scores, 1 / sqrt(D) if None.
      softcap: c in c tanh(score / c), after the scale.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _attend(q, k, v, sinks, window, tiles, tile, scale, softcap)


def _split(x, kv_heads):
    """[tile, H, D] -> [K, tile * G, D]: the queries that share a key-value head, as rows."""
    tile, heads, dim = x.shape
    group = heads // kv_heads
    return x.reshape(tile, kv_heads, group, dim).swapaxes(0, 1).reshape(kv_heads, -1, dim)


def _join(x, tile):
    """The inverse of `_split`."""
    kv_heads, rows, dim = x.shape
    return x.reshape(kv_heads, tile, -1, dim).swapaxes(0, 1).reshape(tile, -1, dim)


def _dots(dtype):
    dot = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)
    return (
        partial(dot, "hqd,khd->hqk"),
        partial(dot, "hqk,khd->hqd"),
        partial(dot, "hqk,hqd->khd"),
    )


def _causal(tile, group):
    lane = jnp.arange(tile)
    return jnp.repeat(lane, group)[:, None] >= lane


def _in_window(tile, group, window):
    """(mask, more): of a tile `back` depths before the query's, and whether any of it is seen."""
    lane = jnp.arange(tile)
    distance = jnp.repeat(lane, group)[:, None] - lane
    return lambda back: distance + back < window, lambda back: back - tile + 1 < window


def capped(scores, softcap):
    """(c tanh(x / c), its slope); the slope is 1 where there is no cap."""
    if softcap is None:
        return scores, None
    bend = jnp.tanh(scores / softcap)
    return softcap * bend, 1 - bend * bend


def _rows_of_heads(x, kv_heads, tile):
    """A number a head, [H] -> [K, tile * G], as `_split` lays the queries out."""
    return jnp.tile(x.astype(jnp.float32).reshape(kv_heads, -1), (1, tile))


def _forward(q, k, v, sinks, window, tiles, tile, scale, softcap):
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    scores_of, values_of, _ = _dots(q.dtype)
    lane = jnp.arange(tile)
    q, k, v, owner = (pad(x, tile) for x in (q, k, v, tiles.owner))

    def one_group(g, carry):
        lead, stop = tiles.lead[g], tiles.lead[g + 1]
        start = tiles.first[lead] + tiles.own[lead]
        q_tile = _split(lanes_of(q, start, tile), kv_heads)
        own = lanes_of(owner, start, tile)
        # Of each query: depth in its block, less that of each key of a tile in the same block.
        distance = jnp.repeat(start + lane - tiles.first[own], group)[:, None] - lane
        owners = jnp.repeat(own, group)

        def weigh(j, top, mask=None):
            k_tile, v_tile = gather(j, tiles, tile, k, v)
            scores, _ = capped(scores_of(q_tile, k_tile) * scale, softcap)
            if mask is not None:
                scores = jnp.where(mask, scores, MASKED)
            top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - top[..., None])
            return top, weights.sum(-1), values_of(weights.astype(v.dtype), v_tile)

        def add(j, top, total, acc, mask=None):
            new_top, new_total, value = weigh(j, top, mask)
            keep = jnp.exp(top - new_top)
            acc = acc * keep[..., None] + value
            return new_top, total * keep + new_total, acc

        causal = distance >= 0
        if window is not None:
            causal &= distance < window

        def begin(i, sums):
            """The sums of tile i's own queries over the keys of the tile itself."""
            new = weigh(i, MASKED, causal)
            return tuple(
                jnp.where((owners == i).reshape(-1, *(1,) * (x.ndim - 2)), y, x)
                for x, y in zip(sums, new, strict=True)
            )

        sums = lax.fori_loop(lead + 1, stop, begin, weigh(lead, MASKED, causal))
        if window is None:
            _, *sums = lax.while_loop(
                lambda state: state[0] >= 0,
                lambda state: (tiles.before[state[0]], *add(*state)),
                (tiles.before[lead], *sums),
            )
        else:

            def add_within(state):
                j, back, top, total, acc = state
                near = distance + back < window
                return tiles.before[j], back + tile, *add(j, top, total, acc, near)

            _, _, *sums = lax.while_loop(
                lambda state: (state[0] >= 0) & (state[1] - tile + 1 < window),
                add_within,
                (tiles.before[lead], jnp.full_like(tiles.count, tile), *sums),
            )
        top, total, acc = sums
        if sinks is not None:
            sink = _rows_of_heads(sinks, kv_heads, tile)
            new_top = jnp.maximum(top, sink)
            keep = jnp.exp(top - new_top)
            total, acc = total * keep + jnp.exp(sink - new_top), acc * keep[..., None]
            top = new_top
        out_tile = _join((acc / total[..., None]).astype(q.dtype), tile)
        norm_tile = _join((top + jnp.log(total))[..., None], tile)
        here = (own >= lead) & (own < stop)

        def keep_own(x, new):
            old = lanes_of(x, start, tile)
            return put(x, start, jnp.where(wide(here, new), new, old))

        return keep_own(carry[0], out_tile), keep_own(carry[1], norm_tile)

    out = jnp.broadcast_to(jnp.zeros_like(q[..., :1]), (*q.shape[:-1], v.shape[-1]))
    carry = (out, jnp.zeros_like(out[..., :1], jnp.float32))
    out, log_norm = lax.fori_loop(0, tiles.groups, one_group, carry)
    return out[tile:-tile], log_norm[tile:-tile]


def _attend_fwd(q, k, v, sinks, window, tiles, tile, scale, softcap):
    out, log_norm = _forward(q, k, v, sinks, window, tiles, tile, scale, softcap)
    out, log_norm = checkpoint_name(out, ATTENDED), checkpoint_name(log_norm, ATTENDED)
    return out, (q, k, v, sinks, window, tiles, out, log_norm)


def _attend_bwd(tile, scale, softcap, saved, d_out):
    q, k, v, sinks, window, tiles, out, log_norm = saved
    dtype, kv_heads = q.dtype, k.shape[1]
    group = q.shape[1] // kv_heads
    scores_of, values_of, transposed_of = _dots(dtype)
    causal = _causal(tile, group)
    if window is not None:
        in_window, more = _in_window(tile, group, window)
        causal &= in_window(0)
    d_out = jnp.where(tiles.owner[:, None, None] >= 0, d_out, 0)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_sinks = None
    if sinks is not None:  # its weight has no value: the softmax's slope is all that is left
        used = tiles.owner[:, None] >= 0
        weight = jnp.where(used, jnp.exp(sinks.astype(jnp.float32) - log_norm[..., 0]), 0)
        d_sinks = -(weight * delta[..., 0]).sum(0).astype(sinks.dtype)
    queries = [pad(x, tile) for x in (q, d_out, log_norm, delta)]
    k, v, owner = (pad(x, tile) for x in (k, v, tiles.owner))

    def one_tile(i, carry):
        dq, *d_keys = carry
        i = tiles.count * 0 + i  # varies over the devices of a shard_map as the rest does
        first = tiles.first[i]
        q_tile, g_tile, norm_tile, delta_tile = (
            _split(lanes_of(x, first, tile), kv_heads) for x in queries
        )
        own = lanes_of(owner, first, tile) == i
        own_rows = jnp.repeat(own, group)[:, None]

        def step(j, dq_tile, d_keys, mask):
            k_tile, v_tile = gather(j, tiles, tile, k, v)
            scores, slope = capped(scores_of(q_tile, k_tile) * scale, softcap)
            weights = jnp.where(mask, jnp.exp(scores - norm_tile), 0)
            d_scores = weights * (scores_of(g_tile, v_tile) - delta_tile) * scale
            d_scores = d_scores if slope is None else d_scores * slope
            d_scores = jnp.where(mask, d_scores, 0).astype(dtype)
            parts = transposed_of(d_scores, q_tile), transposed_of(weights.astype(dtype), g_tile)
            d_keys = scatter_add(d_keys, parts, j, tiles, tile)
            return tiles.before[j], dq_tile + values_of(d_scores, k_tile), d_keys

        state = (i, jnp.zeros_like(q_tile, jnp.float32), tuple(d_keys))
        state = step(*state, own_rows & causal)
        if window is None:
            _, dq_tile, d_keys = lax.while_loop(
                lambda state: state[0] >= 0, lambda state: step(*state, own_rows), state
            )
        else:
            _, _, dq_tile, d_keys = lax.while_loop(
                lambda state: (state[1] >= 0) & more(state[0]),
                lambda state: (
                    state[0] + tile,
                    *step(*state[1:], own_rows & in_window(state[0])),
                ),
                (jnp.full_like(tiles.count, tile), *state),
            )
        dq_tile = lanes_of(dq, first, tile) + _join(dq_tile, tile)
        return put(dq, first, dq_tile), *d_keys

    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (queries[0], k, v))
    grads = lax.fori_loop(0, tiles.count, one_tile, zeros)
    dq, dk, dv = (x[tile:-tile].astype(dtype) for x in grads)
    return dq, dk, dv, d_sinks, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)
