"""Keys and values of tokens that were seen, and the decoder's step over them: one token a row.

A row of the cache is a slot: it holds one sequence, and token i of that stands in column i,
whatever the other slots hold and wherever they are. So what a sequence's next token is computed
from, and in which order, depends on that sequence alone, and beyond 512 columns on their number.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from instructjax.batching.batch import Batch
from instructjax.models.attention import attend
from instructjax.models.config import NO_ROPE, DecoderConfig
from instructjax.models.decoding import DecodingParts
from instructjax.models.rotary import length_classes, sequence_lengths
from instructjax.models.tiles import find_tiles


class KVCache(struct.PyTreeNode):
    """Keys and values, an array a layer, so that a step writes them where they are.

    Attributes:
      keys: columns last, as the product with a query reads them.
      values: features last, as the product with weights reads them.
    """

    keys: tuple[Float[Array, "S K D C"], ...]
    values: tuple[Float[Array, "S K C D"], ...]


def make_cache(config: DecoderConfig, slots: int, columns: int, dtype: Any) -> KVCache:
    """An empty cache.

    Args:
      config: of the decoder.
      slots: sequences at a time.
      columns: tokens of the longest.
      dtype: of the decoder's activations.
    """
    shape = (slots, config.num_kv_heads, config.head_dim, columns)
    turned = (slots, config.num_kv_heads, columns, config.value_dim)
    layers = range(config.num_layers)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(turned, dtype) for _ in layers),
    )


def cache_bytes(config: DecoderConfig, slots: int, columns: int, dtype: Any) -> int:
    """What `make_cache` takes."""
    width = config.num_kv_heads * (config.head_dim + config.value_dim)
    return config.num_layers * slots * columns * width * jnp.dtype(dtype).itemsize


def compute_keys(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch
) -> tuple[Float[Array, "L N K D"], Float[Array, "L N K D"]]:
    """Keys and values of all tokens of a batch, in all layers; shared prefixes are there once."""
    model = nnx.merge(graphdef, params)
    positions, ends = jnp.asarray(batch.positions), jnp.asarray(batch.ends)
    tiles = find_tiles(positions, ends, batch.tile)

    def look(q, k, v, **options):
        options |= {"tile": batch.tile, "split": model.attention_split.whole()}
        return attend(q, k, v, ends, positions, tiles, **options), (k, v)

    depth = positions.reshape(-1)
    lengths = None if length_classes(model.config) is None else sequence_lengths(positions, ends)
    tokens = jnp.asarray(batch.tokens).reshape(-1)
    return model.scan_layers(tokens, depth, look, lengths=lengths)[1]


def decode(
    parts: DecodingParts,
    cache: KVCache,
    tokens: Int[Array, " S"],
    positions: Int[Array, " S"],
) -> tuple[Float[Array, "S E"], KVCache]:
    """Puts one more token into each slot; gives the hidden states after the final norm.

    Args:
      parts: of the decoder.
      cache: with the tokens before these.
      tokens: ids.
      positions: depth of each in its sequence, which is the column that it goes to.
    """
    model = parts.merge_outside()
    kinds, (ropes, angles) = model.config.layers, model.rotations(positions, positions + 1)
    x = model.embed(tokens, positions)
    keys, values = [], []
    for i, layer in enumerate(parts.merge_layers()):
        rope = kinds[i].rope if kinds else ropes[0]
        turn = None if ropes == [NO_ROPE] else angles[ropes.index(rope)]
        window = kinds[i].window if kinds else None

        def look(q, k, v, i=i, window=window, **options):
            k_cache = _write(cache.keys[i], k[..., None], positions, axis=3)
            v_cache = _write(cache.values[i], v[:, :, None], positions, axis=2)
            seen = attend_cached(q, k_cache, v_cache, positions, window=window, **options)
            return seen, (k_cache, v_cache)

        x, (k_cache, v_cache) = layer(x, turn, look)
        keys.append(k_cache)
        values.append(v_cache)
    return model.finish(x), KVCache(keys=tuple(keys), values=tuple(values))


def _write(cache: Array, new: Array, positions: Int[Array, " S"], *, axis: int) -> Array:
    """One column of each slot; a chain of slices, which XLA writes in place (a scatter is not)."""
    for slot in range(cache.shape[0]):
        start = [jnp.zeros_like(positions[slot])] * cache.ndim
        start[0], start[axis] = jnp.full_like(positions[slot], slot), positions[slot]
        cache = lax.dynamic_update_slice(cache, new[slot : slot + 1], start)
    return cache


def seen_columns(
    positions: Int[Array, " S"], columns: int, window: int | None = None
) -> Bool[Array, "S C"]:
    """Which columns the token at each position sees.

    >>> seen_columns(jnp.array([0, 2]), 4, window=2).astype(int).tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0]]
    """
    back = positions[:, None] - jnp.arange(columns)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def attend_cached(
    q: Float[Array, "S H D"],
    keys: Float[Array, "S K D C"],
    values: Float[Array, "S K C d"],
    positions: Int[Array, " S"],
    *,
    window: int | None = None,
    sinks: Float[Array, " H"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "S H d"]:
    """As `attend_dense`, for one query a slot; empty columns change no bit, up to 512 in all.

    Args:
      q: queries.
      keys, values: of the slot, the query's own included.
      positions: column of each query; it sees itself and those before it.
      window: how many of them; all if None.
      sinks, scale, softcap: see `attend_dense`.
    """
    slots, heads, dim = q.shape
    kv_heads, columns = values.shape[1:3]
    # Sums of products, no matrix products: those of a library add in an order that depends on the
    # number of columns. Columns that are not seen add zeros at the end.
    q32 = q.reshape(slots, kv_heads, -1, dim, 1).astype(jnp.float32)
    scores = (q32 * keys[:, :, None].astype(jnp.float32)).sum(3)
    scores *= dim**-0.5 if scale is None else scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = seen_columns(positions, columns, window)[:, None, None]
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    top = scores.max(-1, keepdims=True)
    sink = None
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1)
        top = jnp.maximum(top, sink)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    total = total if sink is None else total + jnp.exp(sink - top)
    weights = (weights / total).astype(values.dtype).astype(jnp.float32)
    out = (weights[..., None] * values[:, :, None].astype(jnp.float32)).sum(3)
    return out.astype(q.dtype).reshape(slots, heads, -1)
