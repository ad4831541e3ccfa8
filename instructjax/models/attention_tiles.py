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
from instructjax.models.tiles import Tiles
from instructjax.models.varying import vary_alike

MASKED = -1e30
# Tiles computed side by side where nothing keeps them apart: of more, threads share the sums and
# exponentials, and of fewer, less is done in vain for those that see less.
TOGETHER = 6
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

    def owner_at(self, here):
        """The owner of queries by where they stand, -1 where none does."""
        inside = (here >= 0) & (here < len(self.owner))
        return jnp.where(inside, self.owner[here], -1)

    def visits(self, firsts, count, order):
        """How many of the parts of a batch have queries here, and a function from their numbers to
        such parts, and how much further in the batch their queries stand than here.

        Args:
          firsts: the first tile of each part: a tile, or a group of them.
          count: how many parts there are.
          order: in which they are visited where all are.
        """
        if len(self.starts) == 1:  # all of it
            return count, lambda i: (order[i], jnp.zeros_like(i))
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
            piece = (stops[:, None] <= i).sum(0)
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
    """[C, tile, H, D] -> [C * K, tile * G, D]: the queries that share a key-value head, as rows."""
    tiles, tile, heads, dim = x.shape
    x = x.reshape(tiles, tile, kv_heads, heads // kv_heads, dim).swapaxes(1, 2)
    return x.reshape(tiles * kv_heads, -1, dim)


def _join(x, kv_heads, tile):
    """The inverse of `_split`."""
    x = x.reshape(-1, kv_heads, tile, x.shape[1] // tile, x.shape[2]).swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _dots(dtype):
    dot = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)
    return partial(dot, "nqd,nkd->nqk"), partial(dot, "nqk,nkd->nqd")


def _mask(scores, seen):
    """Scores [C * K, ...], those of what is not seen [C, ...] all but minus infinity."""
    bias = jnp.where(seen, 0.0, MASKED)[:, None]
    return (scores.reshape(len(seen), -1, *scores.shape[1:]) + bias).reshape(scores.shape)


def _together(options, own_queries) -> int:
    """How many tiles are computed side by side: one where devices have some of the heads or of the
    queries only, which would have to be gathered to stand beside those of other tiles.
    """
    if options.split.parts > 1 or options.split.heads:
        return 1
    return max(1, min(TOGETHER, len(own_queries.owner) // options.tile))


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
    kv_heads = k.shape[1]
    group = q.shape[1] // kv_heads
    scores_of, values_of = _dots(q.dtype)
    lane, together = jnp.arange(tile), _together(options, own_queries)
    count, find = own_queries.visits(tiles.lead, tiles.groups, tiles.group_order)
    by_head = partial(jnp.repeat, repeats=kv_heads, axis=0)
    by_query = partial(jnp.repeat, repeats=group, axis=1)

    def some_groups(n, carry):
        number = n * together + jnp.arange(together)
        live = number < count
        g, shift = find(number)
        lead, stop = tiles.lead[g], jnp.where(live, tiles.lead[g + 1], 0)
        start = (tiles.first[lead] + tiles.own[lead])[:, None] + lane
        here = start - shift[:, None]
        own = own_queries.owner_at(here)
        q_tile = _split(q[here], kv_heads)
        # Of each query: depth in its block, less that of each key of a tile in the same block.
        distance = by_query(start - tiles.first[own])[..., None] - lane

        def weigh(j, top, seen):
            k_tile, v_tile = (_split(x[tiles.lanes[j]], kv_heads) for x in (k, v))
            scores, _ = capped(scores_of(q_tile, k_tile) * scale, softcap)
            scores = _mask(scores, seen)
            top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - top[..., None])
            return top, weights.sum(-1), values_of(weights.astype(v.dtype), v_tile)

        causal = distance >= 0
        if window is not None:
            causal &= distance < window

        def begin(i, sums):
            """The sums of own queries of the tiles i after the first over keys of these."""
            new, owned = (
                weigh(lead + i, MASKED, causal),
                by_head(by_query(own == lead[:, None] + i)),
            )
            return tuple(
                jnp.where(owned.reshape(*owned.shape, *(1,) * (x.ndim - 2)), y, x)
                for x, y in zip(sums, new, strict=True)
            )

        def more(state):
            j, back, *_ = state
            seen = (j >= 0).any()
            return seen if window is None else seen & (back - tile + 1 < window)

        def add(state):
            j, back, top, total, acc = state
            seen = (j >= 0)[:, None, None]
            if window is not None:
                seen &= distance + back < window
            new_top, new_total, value = weigh(j, top, seen)
            keep = jnp.exp(top - new_top)
            acc = acc * keep[..., None] + value
            before = jnp.where(j >= 0, tiles.before[j], -1)
            return before, back + tile, new_top, total * keep + new_total, acc

        sums = lax.fori_loop(1, (stop - lead).max(), begin, weigh(lead, MASKED, causal))
        before = jnp.where(live, tiles.before[lead], -1)
        state = (before, jnp.full_like(tiles.count, tile), *sums)
        _, _, top, total, acc = lax.while_loop(more, add, state)
        if sinks is not None:
            sink = jnp.tile(_rows_of_heads(sinks, kv_heads, tile), (together, 1))
            new_top = jnp.maximum(top, sink)
            keep = jnp.exp(top - new_top)
            total, acc = total * keep + jnp.exp(sink - new_top), acc * keep[..., None]
            top = new_top
        in_group = (own >= lead[:, None]) & (own < stop[:, None])
        rows = jnp.where(in_group, here, len(q))
        found = (acc / total[..., None]).astype(q.dtype), (top + jnp.log(total))[..., None]
        return tuple(
            x.at[rows].set(_join(new, kv_heads, tile), mode="drop")
            for x, new in zip(carry, found, strict=True)
        )

    out = jnp.broadcast_to(jnp.zeros_like(q[..., :1]), (*q.shape[:-1], v.shape[-1]))
    carry = (out, jnp.zeros_like(out[..., :1], jnp.float32))
    return lax.fori_loop(0, -(-count // together), some_groups, carry)


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

    if options.split.parts > 1 or options.split.heads:
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
    kv_heads = k.shape[1]
    group = q.shape[1] // kv_heads
    scores_of, values_of = _dots(q.dtype)
    used = own_queries.owner[:, None] >= 0
    d_out = jnp.where(used[..., None], d_out, 0)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_sinks = None
    if sinks is not None:  # its weight has no value: the softmax's slope is all that is left
        weight = jnp.where(used, jnp.exp(sinks.astype(jnp.float32) - log_norm[..., 0]), 0)
        d_sinks = -(weight * delta[..., 0]).sum(0).astype(sinks.dtype)
    lane, together = jnp.arange(tile), _together(options, own_queries)
    count, find = own_queries.visits(jnp.arange(len(tiles.first)), tiles.count, tiles.order)
    # Of each key and query of a tile: how much further the query stands.
    distance = jnp.repeat(lane, group) - lane[:, None]

    def some_tiles(n, carry):
        dq, *d_keys = carry
        number = n * together + jnp.arange(together)
        i, shift = find(number)
        here = (tiles.first[i] - shift)[:, None] + lane
        own = (own_queries.owner_at(here) == i[:, None]) & (number < count)[:, None]
        q_tile, g_tile, *columns = (_split(x[here], kv_heads) for x in (q, d_out, log_norm, delta))
        norm_tile, delta_tile = (x.swapaxes(1, 2) for x in columns)
        own_rows = jnp.repeat(own, group, axis=1)[:, None]

        def step(state, seen):
            """Keys are rows and queries columns: but for the queries' own slopes no product has to
            turn anything around, and keys are fewer."""
            j, back, dq_tile, *d_keys = state
            k_tile, v_tile = (_split(x[tiles.lanes[j]], kv_heads) for x in (k, v))
            scores, slope = capped(scores_of(k_tile, q_tile) * scale, softcap)
            weights = jnp.exp(_mask(scores, own_rows & seen) - norm_tile)
            d_scores = weights * (scores_of(v_tile, g_tile) - delta_tile) * scale
            d_scores = d_scores if slope is None else d_scores * slope
            d_scores, weights = d_scores.astype(q.dtype), weights.astype(q.dtype)
            parts = values_of(d_scores, q_tile), values_of(weights, g_tile)
            d_keys = (
                x.at[tiles.lanes[j]].add(_join(part, kv_heads, tile))
                for x, part in zip(d_keys, parts, strict=True)
            )
            dq_tile += values_of(k_tile.swapaxes(1, 2), d_scores)
            return jnp.where(j >= 0, tiles.before[j], -1), back + tile, dq_tile, *d_keys

        def more(state):
            j, back, *_ = state
            seen = (j >= 0).any()
            return seen if window is None else seen & (back - tile + 1 < window)

        def add(state):
            j, back, *_ = state
            seen = (j >= 0)[:, None, None]
            return step(state, seen if window is None else seen & (distance + back < window))

        causal = distance >= 0
        if window is not None:
            causal &= distance < window
        nothing = jnp.zeros_like(q_tile, jnp.float32).swapaxes(1, 2)
        state = step((i, jnp.zeros_like(tiles.count), nothing, *d_keys), causal)
        state = jnp.where(number < count, state[0], -1), *state[1:]
        _, _, dq_tile, *d_keys = lax.while_loop(more, add, state)
        rows = jnp.where(own, here, len(dq))
        dq = dq.at[rows].set(_join(dq_tile.swapaxes(1, 2), kv_heads, tile), mode="drop")
        return dq, *d_keys

    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (q, k, v))
    grads = lax.fori_loop(0, -(-count // together), some_tiles, zeros)
    dq, dk, dv = (x.astype(q.dtype) for x in grads)
    return dq, dk, dv, d_sinks


_attend.defvjp(_attend_fwd, _attend_bwd)
