"""Keys and values of tokens that were seen, and the decoder's step over them: one token a row.

A row of the cache is a slot: it holds one sequence, and token i of that stands in column i,
whatever the other slots hold and wherever they are. So what a sequence's next token is computed
from, and in which order, depends on that sequence alone, and beyond 512 columns on their number.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from instructjax.batching.batch import Batch
from instructjax.models.attention import Window, attend
from instructjax.models.config import NO_ROPE, DecoderConfig
from instructjax.models.tiles import find_tiles

# In the order of the layers, which is that of the alphabet.
_STACKS = ("dense_layers", "layers")

Layers = dict[str, tuple[nnx.State, ...]]


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
    value_dim = config.latent.value_dim if config.latent else config.head_dim
    shape = (slots, config.num_kv_heads, config.head_dim, columns)
    turned = (slots, config.num_kv_heads, columns, value_dim)
    layers = range(config.num_layers)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(turned, dtype) for _ in layers),
    )


def split_layers(params: nnx.State) -> tuple[nnx.State, Layers]:
    """A decoder's parameters without its layers, and each stack's layers as arrays of their own.

    A step of one token a row does little but read weights. A slice of a stack that all layers
    share would be copied first, on CPU, every time.
    """
    layers: Layers = {}
    for name in (name for name in _STACKS if name in params):
        count = jax.tree.leaves(params[name])[0].shape[0]
        layers[name] = tuple(jax.tree.map(lambda x, i=i: x[i], params[name]) for i in range(count))
    rest = nnx.State({name: value for name, value in params.items() if name not in _STACKS})
    return rest, layers


def merge_outside(graphdef: nnx.GraphDef, rest: nnx.State, layers: Layers) -> Any:
    """The decoder for what is outside of its layers; one of them stands in for each stack."""
    return nnx.merge(graphdef, nnx.State({**rest, **{n: each[0] for n, each in layers.items()}}))


def compute_keys(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch
) -> tuple[Float[Array, "L N K D"], Float[Array, "L N K D"]]:
    """Keys and values of all tokens of a batch, in all layers; shared prefixes are there once."""
    model = nnx.merge(graphdef, params)
    positions, ends = jnp.asarray(batch.positions), jnp.asarray(batch.ends)
    tiles = find_tiles(positions, ends, batch.tile)

    def look(q, k, v, *, window, **options):
        if window is not None:
            options["window"] = Window(window, positions)
        return attend(q, k, v, ends, tiles, tile=batch.tile, **options), (k, v)

    depth = positions.reshape(-1)
    return model.scan_layers(jnp.asarray(batch.tokens).reshape(-1), depth, look)[1]


def decode(
    graphdef: nnx.GraphDef,
    rest: nnx.State,
    layers: Layers,
    cache: KVCache,
    tokens: Int[Array, " S"],
    positions: Int[Array, " S"],
) -> tuple[Float[Array, "S E"], KVCache]:
    """Puts one more token into each slot; gives the hidden states after the final norm.

    Args:
      graphdef: of the decoder.
      rest, layers: of `split_layers`.
      cache: with the tokens before these.
      tokens: ids.
      positions: depth of each in its sequence, which is the column that it goes to.
    """
    model = merge_outside(graphdef, rest, layers)
    kinds, (ropes, angles) = model.config.layers, model.rotations(positions)
    x = model.embed(tokens, positions)
    keys, values = [], []
    stacks = [(nnx.split(getattr(model, n))[0], each) for n, each in sorted(layers.items())]
    each_layer = [(graph, params) for graph, each in stacks for params in each]
    for i, (graph, params) in enumerate(each_layer):
        rope = kinds[i].rope if kinds else ropes[0]
        turn = None if ropes == [NO_ROPE] else angles[ropes.index(rope)]
        window = kinds[i].window if kinds else None

        def look(q, k, v, i=i, window=window, **options):
            k_cache = _write(cache.keys[i], k[..., None], positions, axis=3)
            v_cache = _write(cache.values[i], v[:, :, None], positions, axis=2)
            seen = attend_cached(q, k_cache, v_cache, positions, window=window, **options)
            return seen, (k_cache, v_cache)

        x, (k_cache, v_cache) = nnx.merge(graph, params)(x, turn, look)
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
