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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from instructjax.models.attention_split import UNSPLIT, AttentionSplit
from instructjax.models.linear import precision_of
from instructjax.models.tiles import Tiles, gather, lanes_of, pad, put, scatter_add, wide
from instructjax.models.varying import vary_alike

MASKED = -1e30
# What a backward pass that computes layers again may keep of attention; see `models.remat`.
ATTENDED = "attended"


class _Options(NamedTuple):
    tile: int
    scale: float
    softcap: float | None
    split: AttentionSplit
    rows: int


class _Own(NamedTuple):
    """Queries that stand in pieces, one after the other, of a batch that may have more.

    Attributes:
      owner: the tile that each query belongs to, -1 for padding.
      starts: where in the batch each piece begins.
    """

    owner: Int[Array, " Q"]
    starts: Int[Array, " P"]

    def visits(self, firsts, count):
        """How many of the parts of a batch have queries here, and a function from their number to
        such a part, and how much further in the batch its queries stand than here.

        Args:
          firsts: the first tile of each part: a tile, or a group of them.
          count: how many parts there are.
        """
        if len(self.starts) == 1:  # all of it; varies over the devices of a shard_map as that does
            return count, lambda i: (count * 0 + i, 0)
        owner = self.owner.reshape(len(self.starts), -1)
        firsts = jnp.where(jnp.arange(len(firsts)) < count, firsts, len(firsts))
        part = partial(jnp.searchsorted, firsts, side="right", method="compare_all")
        low = jnp.maximum(part(jnp.where(owner < 0, len(firsts), owner).min(1)) - 1, 0)
        high, shifts = part(owner.max(1)), self.starts - jnp.arange(0, owner.size, owner.shape[1])
        # What reaches into the next piece is visited once where that stands behind it here as well.
        follows = shifts[1:] == shifts[:-1]
        low = low.at[1:].max(jnp.where(follows, high[:-1], 0))
        stops = jnp.cumsum(jnp.maximum(high - low, 0))

        def find(i):
            piece = (stops <= i).sum()
            before = jnp.where(piece > 0, stops[piece - 1], 0)
            return low[piece] + i - before, shifts[piece]

        return stops[-1], find


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, sinks, window, tiles, options: _Options):
    return _attend_fwd(q, k, v, sinks, window, tiles, options)[0]


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
    split: AttentionSplit = UNSPLIT,
    rows: int = 1,
) -> Float[Array, "N H V"]:
    """As `attend_dense`, with zeros for tokens that nobody sees.

    Args:
      q, k, v: N = B * T tokens, flat; where rows are split, the device's own.
      tiles: of `find_tiles` with the same `tile`; one serves all layers.
      tile: queries and keys a tile.
      window: a query sees keys less than so many tokens before it; tiles beyond are not visited.
      sinks: one more logit a head, which takes part in the softmax and has no value.
      scale: of scores, 1 / sqrt(D) if None.
      softcap: c in c tanh(score / c), after the scale.
      split: how heads and queries are split over devices; the former is left to the compiler where
        the latter are whole.
      rows: B, which nothing depends on where queries are whole.
    """
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if sinks is not None:  # their gradient is added up over devices that share them
        q, sinks = vary_alike(q, sinks)
    options = _Options(tile, scale, softcap, split, rows)
    return _attend(q, k, v, sinks, window, tiles, options)


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


def _forward(q, k, v, sinks, window, tiles, own_queries, options):
    """(what queries receive [Q, H, V], log-normalizers [Q, H, 1])."""
    tile, scale, softcap, *_ = options
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    scores_of, values_of, _ = _dots(q.dtype)
    lane = jnp.arange(tile)
    count, find = own_queries.visits(tiles.lead, tiles.groups)
    q, k, v, owner = (pad(x, tile) for x in (q, k, v, own_queries.owner))

    def one_group(i, carry):
        g, shift = find(i)
        lead, stop = tiles.lead[g], tiles.lead[g + 1]
        start = tiles.first[lead] + tiles.own[lead]
        here = start - shift
        q_tile = _split(lanes_of(q, here, tile), kv_heads)
        own = lanes_of(owner, here, tile)
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
        in_group = (own >= lead) & (own < stop)

        def keep_own(x, new):
            old = lanes_of(x, here, tile)
            return put(x, here, jnp.where(wide(in_group, new), new, old))

        return keep_own(carry[0], out_tile), keep_own(carry[1], norm_tile)

    out = jnp.broadcast_to(jnp.zeros_like(q[..., :1]), (*q.shape[:-1], v.shape[-1]))
    carry = (out, jnp.zeros_like(out[..., :1], jnp.float32))
    out, log_norm = lax.fori_loop(0, count, one_group, carry)
    return out[tile:-tile], log_norm[tile:-tile]


def _specs(split: AttentionSplit) -> tuple[PartitionSpec, Any]:
    """How arrays of queries and of keys are split, and the other arguments."""
    heads = split.heads or None
    whole: Any = PartitionSpec()
    by_head = PartitionSpec(None, heads)
    return by_head, (PartitionSpec(heads), whole, whole, _Own(whole, whole))


def _own_queries(tiles, options) -> _Own:
    split, rows = options.split, options.rows
    index = jnp.arange(tiles.owner.size)
    if split.parts == 1:
        return _Own(tiles.owner, index[:1])
    owner, index = (split.spread(x.reshape(rows, -1)) for x in (tiles.owner, index))
    return _Own(owner, index[:: split.piece(tiles.owner.size // rows)])


def _gather(options, *arrays):
    """Tokens of whole rows."""
    split = options.split
    if split.parts == 1:
        return arrays
    by_row = (x.reshape(options.rows, -1, *x.shape[1:]) for x in arrays)
    return tuple(split.gather(x, axis=1).reshape(-1, *x.shape[2:]) for x in by_row)


def _attend_fwd(q, k, v, sinks, window, tiles, options):
    own = _own_queries(tiles, options)

    def call(q, k, v, *others):
        return _forward(q, *_gather(options, k, v), *others, options=options)

    if options.split.parts > 1:
        by_head, others = _specs(options.split)
        call = options.split.map_devices(call, (by_head,) * 3 + others, by_head)
    out, log_norm = call(q, k, v, sinks, window, tiles, own)
    out, log_norm = checkpoint_name(out, ATTENDED), checkpoint_name(log_norm, ATTENDED)
    return out, (q, k, v, sinks, window, tiles, own, out, log_norm)


def _attend_bwd(options, saved, d_out):
    q, k, v, sinks, window, tiles, own, out, log_norm = saved
    split = options.split
    arguments = (q, k, v, sinks, window, tiles, own, out, log_norm, d_out)
    if split.parts == 1:
        return *_backward(*arguments, options=options), None, None

    def call(q, k, v, *others):
        keys = _gather(options, k, v)
        dq, *d_keys, d_sinks = _backward(q, *keys, *others, options=options)
        d_keys = (x.reshape(options.rows, -1, *x.shape[1:]) for x in d_keys)
        d_keys = (split.scatter(x, axis=1).reshape(-1, *x.shape[2:]) for x in d_keys)
        return dq, *d_keys, d_sinks

    by_head, others = _specs(split)
    specs = ((by_head,) * 3 + others + (by_head,) * 3), (by_head,) * 3 + others[:1]
    return *split.map_devices(call, *specs)(*arguments), None, None


def _backward(q, k, v, sinks, window, tiles, own_queries, out, log_norm, d_out, *, options):
    """Gradients of q, k and v, and of sinks or None."""
    tile, scale, softcap, *_ = options
    dtype, kv_heads = q.dtype, k.shape[1]
    group = q.shape[1] // kv_heads
    scores_of, values_of, transposed_of = _dots(dtype)
    causal = _causal(tile, group)
    if window is not None:
        in_window, more = _in_window(tile, group, window)
        causal &= in_window(0)
    used = own_queries.owner[:, None] >= 0
    d_out = jnp.where(used[..., None], d_out, 0)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_sinks = None
    if sinks is not None:  # its weight has no value: the softmax's slope is all that is left
        weight = jnp.where(used, jnp.exp(sinks.astype(jnp.float32) - log_norm[..., 0]), 0)
        d_sinks = -(weight * delta[..., 0]).sum(0).astype(sinks.dtype)
    count, find = own_queries.visits(jnp.arange(len(tiles.first)), tiles.count)
    queries = [pad(x, tile) for x in (q, d_out, log_norm, delta)]
    k, v, owner = (pad(x, tile) for x in (k, v, own_queries.owner))

    def one_tile(i, carry):
        dq, *d_keys = carry
        i, shift = find(i)
        first = tiles.first[i] - shift
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
    grads = lax.fori_loop(0, count, one_tile, zeros)
    dq, dk, dv = (x[tile:-tile].astype(dtype) for x in grads)
    return dq, dk, dv, d_sinks


_attend.defvjp(_attend_fwd, _attend_bwd)
