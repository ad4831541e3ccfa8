"""Attention for CPUs: a loop over square tiles of queries and keys, skipping what is not seen.

Each sequence of a row is cut into tiles counted from its own first token, so that the numbers of
a sequence do not depend on where in the row it stands or on what stands beside it. Nothing is
computed for tiles above the diagonal, outside the sequence, or on branches of a tree that the
queries cannot see; the cost of packing is nil. The backward pass recomputes each tile's
probabilities from the saved log-normalizers (Dao et al. 2022), so that no [T, T] array exists.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.linear import precision_of

MASKED = -1e30


class Tiles(NamedTuple):
    """How a flat batch is cut into tiles of queries, and the tiles of keys that each one needs.

    Attributes:
      starts: first query of each tile; the number of tokens past the last tile.
      count: how many tiles there are.
      roots: first token of each token's sequence, -1 for padding.
      keys: for each tile, first keys of the tiles that any of its queries sees, in order.
      num_keys: how many those are.
    """

    starts: Int[Array, " N"]
    count: Int[Array, ""]
    roots: Int[Array, " N"]
    keys: Int[Array, "N J"]
    num_keys: Int[Array, " N"]


def find_tiles(positions: Int[Array, "B T"], ends: Int[Array, "B T"], tile: int) -> Tiles:
    """A sequence begins where a seen token has position 0; its tiles follow every `tile` tokens.

    >>> positions, ends = jnp.array([[0, 1, 2, 0, 0]]), jnp.array([[3, 3, 3, 4, 0]])
    >>> tiles = find_tiles(positions, ends, 2)
    >>> tiles.roots.tolist(), tiles.starts[: tiles.count].tolist(), tiles.keys[1, :2].tolist()
    ([0, 0, 0, 3, -1], [0, 2, 3], [0, 2])
    """
    tokens, row = ends.size, ends.shape[1]
    index = jnp.arange(tokens)
    flat = _flat_ends(ends)
    used = flat > index
    begins = (used & (positions.reshape(-1) == 0)) | (index % row == 0)
    roots = lax.cummax(jnp.where(begins, index, 0))
    is_start = used & ((index - roots) % tile == 0)
    (starts,) = jnp.nonzero(is_start, size=tokens, fill_value=tokens)
    last_seen = lax.reduce_window(
        _pad(flat, tile - 1), 0, lax.max, (tile,), (1,), padding="valid"
    )
    queries = jnp.minimum(starts, tokens - 1)[:, None]
    number = jnp.arange(-(-row // tile))
    keys = roots[queries] + number * tile
    needed = (keys <= queries) & (last_seen[jnp.minimum(keys, tokens - 1)] > queries)
    order = jnp.sort(jnp.where(needed, keys, tokens), axis=1)
    return Tiles(starts, is_start.sum(), jnp.where(used, roots, -1), order, needed.sum(1))


def _flat_ends(ends: Int[Array, "B T"]) -> Int[Array, " N"]:
    rows, length = ends.shape
    return (ends + jnp.where(ends > 0, jnp.arange(rows)[:, None] * length, 0)).reshape(-1)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, ends, tiles, tile):
    return _forward(q, k, v, ends, tiles, tile)[0]


def attend_tiles(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K D"],
    ends: Int[Array, "B T"],
    tiles: Tiles,
    *,
    tile: int,
) -> Float[Array, "N H D"]:
    """As `attend_dense`; tokens that nobody sees get zeros or any finite numbers.

    Args:
      q, k, v: N = B * T tokens, flat.
      ends: the visibility rule of this package's `attention` module.
      tiles: of `find_tiles` with the same `ends` and `tile`; one serves all layers.
      tile: queries and keys a tile.
    """
    return _attend(q, k, v, ends, tiles, tile)


def _slices(size, *arrays):
    return lambda start: tuple(lax.dynamic_slice_in_dim(x, start, size) for x in arrays)


def _pad(x, tile):
    return jnp.pad(x, ((0, tile),) + ((0, 0),) * (x.ndim - 1))


def _split(x, kv_heads):
    """[tile, H, D] -> [K, tile * G, D]: the queries that share a key-value head, as rows."""
    tile, heads, dim = x.shape
    group = heads // kv_heads
    return x.reshape(tile, kv_heads, group, dim).swapaxes(0, 1).reshape(kv_heads, -1, dim)


def _join(x, tile):
    """The inverse of `_split`."""
    kv_heads, rows, dim = x.shape
    return x.reshape(kv_heads, tile, -1, dim).swapaxes(0, 1).reshape(tile, -1, dim)


def _mask(q_start, k_start, k_ends, tile, group):
    queries = jnp.repeat(q_start + jnp.arange(tile), group)[:, None]
    keys = k_start + jnp.arange(tile)
    return (keys <= queries) & (queries < k_ends)


def _dots(dtype):
    dot = partial(jnp.einsum, precision=precision_of(dtype), preferred_element_type=jnp.float32)
    return (
        partial(dot, "hqd,khd->hqk"),
        partial(dot, "hqk,khd->hqd"),
        partial(dot, "hqk,hqd->khd"),
    )


def _forward(q, k, v, ends, tiles, tile):
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    scores_of, values_of, _ = _dots(q.dtype)
    queries = _slices(tile, _pad(q, tile))
    keys = _slices(tile, _pad(k, tile), _pad(v, tile), _pad(_flat_ends(ends), tile))

    def one_tile(i, carry):
        out, log_norm = carry
        q_start = tiles.starts[i]
        q_tile = _split(queries(q_start)[0], kv_heads)

        def attend_to(j, running):
            top, total, acc = running
            k_start = tiles.keys[i, j]
            k_tile, v_tile, k_ends = keys(k_start)
            mask = _mask(q_start, k_start, k_ends, tile, heads // kv_heads)
            scores = jnp.where(mask, scores_of(q_tile, k_tile) * dim**-0.5, MASKED)
            new_top = jnp.maximum(top, scores.max(-1))
            weights = jnp.exp(scores - new_top[..., None])
            keep = jnp.exp(top - new_top)
            value = values_of(weights.astype(v_tile.dtype), v_tile)
            return new_top, total * keep + weights.sum(-1), acc * keep[..., None] + value

        acc = jnp.zeros_like(q_tile, jnp.float32)
        running = (jnp.full_like(acc[..., 0], MASKED), acc[..., 0], acc)
        top, total, acc = lax.fori_loop(0, tiles.num_keys[i], attend_to, running)
        out_tile = _join((acc / total[..., None]).astype(q.dtype), tile)
        norm_tile = _join((top + jnp.log(total))[..., None], tile)
        # Rows past the end of this sequence belong to later tiles, which overwrite them.
        return (
            lax.dynamic_update_slice_in_dim(out, out_tile, q_start, 0),
            lax.dynamic_update_slice_in_dim(log_norm, norm_tile, q_start, 0),
        )

    out = _pad(jnp.zeros_like(q), tile)
    log_norm = jnp.zeros_like(out[..., :1], jnp.float32)
    out, log_norm = lax.fori_loop(0, tiles.count, one_tile, (out, log_norm))
    return out[:tokens], log_norm[:tokens]


def _attend_fwd(q, k, v, ends, tiles, tile):
    out, log_norm = _forward(q, k, v, ends, tiles, tile)
    return out, (q, k, v, ends, out, log_norm, tiles)


def _attend_bwd(tile, saved, d_out):
    q, k, v, ends, out, log_norm, tiles = saved
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    scores_of, values_of, transposed_of = _dots(q.dtype)
    used = (tiles.roots >= 0)[:, None, None]
    d_out = jnp.where(used, d_out, 0)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    queries = _slices(tile, *(_pad(x, tile) for x in (q, d_out, log_norm, delta)))
    owners = _slices(tile, _pad(tiles.roots, tile))
    keys = _slices(tile, *(_pad(x, tile) for x in (k, v, _flat_ends(ends))))

    def one_tile(i, carry):
        q_start = tiles.starts[i]
        root = tiles.roots[q_start]
        q_tile, g_tile, norm_tile, delta_tile = (_split(x, kv_heads) for x in queries(q_start))
        own = jnp.repeat(owners(q_start)[0] == root, group)[:, None]

        def attend_to(j, carry):
            dq_tile, dk, dv = carry
            k_start = tiles.keys[i, j]
            k_tile, v_tile, k_ends = keys(k_start)
            mask = own & _mask(q_start, k_start, k_ends, tile, group)
            scores = scores_of(q_tile, k_tile) * dim**-0.5
            weights = jnp.where(mask, jnp.exp(scores - norm_tile), 0)
            d_scores = weights * (scores_of(g_tile, v_tile) - delta_tile) * dim**-0.5
            d_scores, weights = d_scores.astype(q.dtype), weights.astype(q.dtype)
            return (
                dq_tile + values_of(d_scores, k_tile),
                _add_at(dk, transposed_of(d_scores, q_tile), k_start),
                _add_at(dv, transposed_of(weights, g_tile), k_start),
            )

        dq, dk, dv = carry
        carry = (jnp.zeros_like(q_tile, jnp.float32), dk, dv)
        dq_tile, dk, dv = lax.fori_loop(0, tiles.num_keys[i], attend_to, carry)
        return lax.dynamic_update_slice_in_dim(dq, _join(dq_tile, tile), q_start, 0), dk, dv

    zeros = tuple(_pad(jnp.zeros_like(x, jnp.float32), tile) for x in (q, k, v))
    dq, dk, dv = lax.fori_loop(0, tiles.count, one_tile, zeros)
    dq = jnp.where(used, dq[:tokens], 0)
    return dq.astype(q.dtype), dk[:tokens].astype(k.dtype), dv[:tokens].astype(v.dtype), None, None


def _add_at(total, part, start):
    current = lax.dynamic_slice_in_dim(total, start, part.shape[0])
    return lax.dynamic_update_slice_in_dim(total, current + part, start, 0)


_attend.defvjp(_attend_fwd, _attend_bwd)
