"""One decoder-only transformer for every family: token ids in, hidden states out.

Tokens stay flat, [N, E] with N = B * T, through every projection; only attention knows rows.
Layers are stacked on a leading axis and scanned, so a program's size does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.attention import Look, attend
from instructjax.models.attention_split import UNSPLIT
from instructjax.models.config import NO_ROPE, DecoderConfig, RopeConfig
from instructjax.models.experts import Experts
from instructjax.models.latent_attention import LatentAttention
from instructjax.models.linear import LayerNorm, Linear, OnePlusRMSNorm, RMSNorm
from instructjax.models.remat import rematerialize
from instructjax.models.rotary import (
    by_length,
    frequencies_by_length,
    inverse_frequencies,
    rotate,
    rotation,
    sequence_lengths,
)
from instructjax.models.tiles import find_tiles
from instructjax.models.varying import WHOLE_TABLE

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}

# A window that no sequence is as long as: of a layer that sees everything.
_EVERYTHING = 1 << 30


def _norm(config: DecoderConfig, dtype: jnp.dtype, *shape: int, bias: bool = False):
    """A norm of the configuration's kind over the last axis of what has this shape a token."""
    if config.norm == "layer":
        return LayerNorm(*shape, eps=config.norm_eps, bias=bias, dtype=dtype)
    kind = OnePlusRMSNorm if config.norm == "rms1p" else RMSNorm
    return kind(*shape, eps=config.norm_eps, dtype=dtype)


def _stream_norm(config: DecoderConfig, dtype: jnp.dtype):
    return _norm(config, dtype, config.hidden_size, bias=config.norm_bias)


def _apply(norm: Callable[[Array], Array] | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class Embedding(nnx.Module):
    """Rows of a [V, E] table and, with learned positions, of a [P, E] table."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        features = config.hidden_size
        self.multiplier = config.embedding_multiplier
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, features), dtype))
        self.positions = (
            nnx.Param(jnp.zeros((config.max_positions, features), dtype))
            if config.learned_positions
            else None
        )

    def __call__(self, tokens: Int[Array, " N"], positions: Int[Array, " N"]):
        x = self.embedding[...][tokens]
        x = x if self.multiplier == 1 else x * jnp.asarray(self.multiplier, x.dtype)
        return x if self.positions is None else x + self.positions[...][positions]


class Head(nnx.Module):
    """The untied output table, [V, E] like the embedding."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        bias = config.attention_bias
        self.head_dim = dim
        self.q = Linear(config.hidden_size, heads * dim, bias=bias, dtype=dtype)
        self.k = Linear(config.hidden_size, kv_heads * dim, bias=bias, dtype=dtype)
        self.v = Linear(config.hidden_size, kv_heads * dim, bias=bias, dtype=dtype)
        self.o = Linear(heads * dim, config.hidden_size, bias=config.has_output_bias, dtype=dtype)
        self.norms_all = config.qk_norm == "all"
        self.q_norm = self._qk_norm(config, heads, dtype)
        self.k_norm = self._qk_norm(config, kv_heads, dtype)
        self.sinks = nnx.Param(jnp.zeros((heads,), dtype)) if config.sinks else None
        options = {"scale": config.attention_scale, "softcap": config.attention_softcap}
        self.options = tuple((name, value) for name, value in options.items() if value is not None)

    @staticmethod
    def _qk_norm(config: DecoderConfig, heads: int, dtype: jnp.dtype):
        shapes = {
            "head": (config.head_dim,),
            "heads": (heads, config.head_dim),
            "all": (heads * config.head_dim,),
        }
        return None if config.qk_norm is None else _norm(config, dtype, *shapes[config.qk_norm])

    def project(self, x: Float[Array, "N E"]) -> Sequence[Array]:
        """Queries, keys and values of all heads, flat."""
        return self.q(x), self.k(x), self.v(x)

    def __call__(self, x: Float[Array, "N E"], angles, look: Look) -> tuple[Array, Any]:
        q, k, v = self.project(x)
        if self.norms_all:
            q, k = _apply(self.q_norm, q), _apply(self.k_norm, k)
        q, k, v = (y.reshape(x.shape[0], -1, self.head_dim) for y in (q, k, v))
        if not self.norms_all:
            q, k = _apply(self.q_norm, q), _apply(self.k_norm, k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        options: dict[str, Any] = dict(self.options)
        if self.sinks is not None:
            options["sinks"] = self.sinks[...]
        seen, kept = look(q, k, v, **options)
        return self.o(seen.reshape(x.shape[0], -1)), kept


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, *, width: int):
        wide, narrow, bias = width, config.hidden_size, config.mlp_bias
        self.activation = config.activation
        self.gate = Linear(narrow, wide, bias=bias, dtype=dtype) if config.gated else None
        self.up = Linear(narrow, wide, bias=bias, dtype=dtype)
        self.down = Linear(wide, narrow, bias=bias, dtype=dtype)

    def project(self, x: Float[Array, "N E"]) -> Sequence[Array]:
        """Gate, if there is one, and up."""
        return (self.up(x),) if self.gate is None else (self.gate(x), self.up(x))

    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        first, *up = self.project(x)
        wide = _ACTIVATIONS[self.activation](first)
        return self.down(wide * up[0] if up else wide)


class ExpertsAndShared(Experts):
    """Experts, and one more that every token goes through."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        super().__init__(config, dtype)
        self.shared = MLP(config, dtype, width=config.shared_size)

    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        return super().__call__(x) + self.shared(x)


def _block(config: DecoderConfig, dtype: jnp.dtype, dense: bool):
    """What stands after attention in a layer."""
    if not config.num_experts:
        return MLP(config, dtype, width=config.intermediate_size)
    if dense:
        return MLP(config, dtype, width=config.dense_size)
    return (ExpertsAndShared if config.shared_size else Experts)(config, dtype)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); norms after them, or both at once."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype, *, dense: bool = False):
        self.parallel, self.multiplier = config.parallel, config.residual_multiplier
        two = config.pre_norm and not config.shared_norm
        self.attention_norm = _stream_norm(config, dtype) if config.pre_norm else None
        attention = LatentAttention if config.latent else Attention
        self.attention = attention(config, dtype)
        self.attention_post_norm = _stream_norm(config, dtype) if config.post_norm else None
        self.mlp_norm = _stream_norm(config, dtype) if two else None
        self.mlp = _block(config, dtype, dense)
        self.mlp_post_norm = _stream_norm(config, dtype) if config.post_norm else None

    def __call__(self, x: Float[Array, "N E"], angles, look: Look) -> tuple[Array, Any]:
        before = _apply(self.attention_norm, x)
        attended, kept = self.attention(before, angles, look)
        attended = _apply(self.attention_post_norm, attended)
        if not self.parallel:
            x = before = self._add(x, attended)
        if self.mlp_norm is not None:
            before = self.mlp_norm(x)
        y = _apply(self.mlp_post_norm, self.mlp(before))
        return self._add(self._add(x, attended) if self.parallel else x, y), kept

    def _add(self, x: Float[Array, "N E"], y: Float[Array, "N E"]) -> Float[Array, "N E"]:
        return x + (y if self.multiplier == 1 else y * jnp.asarray(self.multiplier, y.dtype))


class Decoder(nnx.Module):
    """Embedding, a scanned stack of layers, a final norm. The head is applied by scoring.

    Dense layers before those with experts are a stack of their own, `dense_layers`.

    Attributes:
      gather: makes a layer's parameters whole where each device has a part of them; see `spmd`.
      table_split: how the rows of `output_table` are split, for the head.
      attention_split: how heads are, and tokens of a row.
    """

    gather: Callable[[nnx.State], nnx.State] | None

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        self.config = config
        self.gather = None
        self.table_split = WHOLE_TABLE
        self.attention_split = UNSPLIT
        self.embed = Embedding(config, dtype)
        dense = config.dense_layers
        self.dense_layers = (
            nnx.vmap(lambda _: Layer(config, dtype, dense=True))(jnp.arange(dense))
            if dense
            else None
        )
        sparse = jnp.arange(config.num_layers - dense)
        self.layers = nnx.vmap(lambda _: Layer(config, dtype))(sparse)
        self.final_norm = _stream_norm(config, dtype)
        self.lm_head = None if config.tie_embeddings else Head(config, dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        ends: Int[Array, "B T"],
        *,
        tile: int = 64,
        remat: str = "none",
    ) -> Float[Array, "B T E"]:
        """Hidden states after the final norm.

        Args:
          tokens: ids; those that nobody sees (`ends` 0) are padding and may be any id.
          positions: depth of each token in its own sequence.
          ends: first index of the row that no longer sees this token; see `attention`.
          tile: queries and keys a tile where attention runs in tiles; no effect on the result
            beyond rounding.
          remat: what the backward pass computes again instead of keeping it, see
            `rematerialize`.
        """
        rows, length = tokens.shape
        split = self.attention_split.for_rows(length, tile)
        tokens, positions, ends = map(split.pad, (tokens, positions, ends))
        tiles = find_tiles(positions, ends, tile)

        def look(q, k, v, **options):
            options |= {"tile": tile, "split": split}
            return attend(q, k, v, ends, positions, tiles, **options), None

        ropes = [self.config.rope, *(kind.rope for kind in self.config.layers)]
        lengths = None
        if any(map(by_length, ropes)):
            lengths = sequence_lengths(positions, ends)
            lengths = split.spread(lengths.reshape(positions.shape))
        tokens, depth = split.spread(tokens), split.spread(positions)
        x, _ = self.scan_layers(tokens, depth, look, lengths=lengths, remat=remat)
        return split.collect(x, rows)[:, :length]

    def scan_layers(
        self,
        tokens: Int[Array, " N"],
        depth: Int[Array, " N"],
        look: Look,
        *,
        lengths: Int[Array, " N"] | None = None,
        remat: str = "none",
    ) -> tuple[Float[Array, "N E"], Any]:
        """Hidden states of flat tokens after the final norm, and what `look` keeps, by layer.

        Args:
          tokens: ids.
          depth: of each token in its own sequence.
          look: attention; its `window` is how many tokens the layer's queries see, or None.
          lengths: see `rotations`.
          remat: see `rematerialize`.
        """
        config = self.config
        ropes, angles = self.rotations(depth, lengths)
        # Layers that differ take their own from a stack; a program for layers alike has no trace
        # of this.
        each: dict[str, Array] = {}
        if len(ropes) > 1:
            each["rope"] = jnp.array([ropes.index(kind.rope) for kind in config.layers])
            stack = jax.tree.map(lambda *parts: jnp.stack(parts), *angles)
        if any(kind.window for kind in config.layers):
            each["window"] = jnp.array([kind.window or _EVERYTHING for kind in config.layers])
        alike = None if ropes == [NO_ROPE] else angles[0]

        def step(graphdef, x, scanned):
            params, own = scanned
            params = params if self.gather is None else self.gather(params)
            turn = jax.tree.map(lambda s: s[own["rope"]], stack) if "rope" in own else alike
            layer = nnx.merge(graphdef, params)
            return layer(x, turn, partial(look, window=own.get("window")))

        def run(stack, x, each):
            graphdef, stacked = nnx.split(stack)
            body = rematerialize(partial(step, graphdef), remat, gathers=self.gather is not None)
            return lax.scan(body, x, (stacked, each))

        x, dense = self.embed(tokens, depth), config.dense_layers
        if self.dense_layers is None:
            x, kept = run(self.layers, x, each)
        else:
            first = {name: part[:dense] for name, part in each.items()}
            x, before = run(self.dense_layers, x, first)
            x, kept = run(self.layers, x, {name: part[dense:] for name, part in each.items()})
            kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, kept)
        return self.finish(x), kept

    def rotations(
        self, depth: Int[Array, " N"], lengths: Int[Array, " N"] | None = None
    ) -> tuple[list[RopeConfig], list[Any]]:
        """The kinds of rotary positions that layers have, and the turns of each at these depths.

        Args:
          depth: of each token in its own sequence.
          lengths: of the request that each token belongs to; None where all are within the original
            context, or nothing depends on it.
        """
        config = self.config
        ropes = list(dict.fromkeys(kind.rope for kind in config.layers)) or [config.rope]
        width = config.latent.rotary_dim if config.latent else config.rotary_dim or config.head_dim

        def find(rope: RopeConfig):
            if lengths is not None and by_length(rope):
                return frequencies_by_length(rope, width, lengths)
            return inverse_frequencies(rope, width)

        return ropes, [rotation(depth, find(rope), rope.attention_factor) for rope in ropes]

    def finish(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        """What the head takes of the last layer's output."""
        x, multiplier = self.final_norm(x), self.config.logit_multiplier
        return x if multiplier == 1 else x * jnp.asarray(multiplier, x.dtype)

    @property
    def output_table(self) -> Float[Array, "V E"]:
        """The head's weights: row v gives token v its logit."""
        return (self.embed.embedding if self.lm_head is None else self.lm_head.kernel)[...]
