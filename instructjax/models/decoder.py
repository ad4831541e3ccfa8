"""One decoder-only transformer for every family: token ids in, hidden states out.

Tokens stay flat, [N, E] with N = B * T, through every projection; only attention knows rows.
Layers are stacked on a leading axis and scanned, so a program's size does not grow with depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.attention import attend
from instructjax.models.attention_tiles import find_tiles
from instructjax.models.config import DecoderConfig
from instructjax.models.linear import Linear, RMSNorm
from instructjax.models.rotary import inverse_frequencies, rotate, rotation


class Embedding(nnx.Module):
    """Rows of a [V, E] table."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        self.embedding = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))

    def __call__(self, tokens: Int[Array, " N"]) -> Float[Array, "N E"]:
        return self.embedding[...][tokens]


class Head(nnx.Module):
    """The untied output table, [V, E] like the embedding."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((config.vocab_size, config.hidden_size), dtype))


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        self.head_dim = config.head_dim
        self.q = Linear(config.hidden_size, queries, bias=bias, dtype=dtype)
        self.k = Linear(config.hidden_size, keys, bias=bias, dtype=dtype)
        self.v = Linear(config.hidden_size, keys, bias=bias, dtype=dtype)
        self.o = Linear(queries, config.hidden_size, bias=bias, dtype=dtype)

    def __call__(self, x: Float[Array, "N E"], angles, ends, tiles, tile: int):
        q, k, v = (p(x).reshape(x.shape[0], -1, self.head_dim) for p in (self.q, self.k, self.v))
        q, k = rotate(q, *angles), rotate(k, *angles)
        return self.o(attend(q, k, v, ends, tiles, tile=tile).reshape(x.shape[0], -1))


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        wide, narrow, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        self.gate = Linear(narrow, wide, bias=bias, dtype=dtype)
        self.up = Linear(narrow, wide, bias=bias, dtype=dtype)
        self.down = Linear(wide, narrow, bias=bias, dtype=dtype)

    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        features, eps = config.hidden_size, config.norm_eps
        self.attention_norm = RMSNorm(features, eps=eps, dtype=dtype)
        self.attention = Attention(config, dtype)
        self.mlp_norm = RMSNorm(features, eps=eps, dtype=dtype)
        self.mlp = MLP(config, dtype)

    def __call__(self, x: Float[Array, "N E"], angles, ends, tiles, tile: int):
        x = x + self.attention(self.attention_norm(x), angles, ends, tiles, tile)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
    """Embedding, a scanned stack of layers, a final norm. The head is applied by scoring."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        self.config = config
        self.embed = Embedding(config, dtype)
        self.layers = nnx.vmap(lambda _: Layer(config, dtype))(jnp.arange(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, dtype=dtype)
        self.lm_head = None if config.tie_embeddings else Head(config, dtype)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        ends: Int[Array, "B T"],
        *,
        tile: int = 64,
    ) -> Float[Array, "B T E"]:
        """Hidden states after the final norm.

        Args:
          tokens: ids; those that nobody sees (`ends` 0) are padding and may be any id.
          positions: depth of each token in its own sequence.
          ends: first index of the row that no longer sees this token; see `attention`.
          tile: queries and keys a tile where attention runs in tiles; no effect on the result
            beyond rounding.
        """
        config = self.config
        inverse = inverse_frequencies(config.rope, config.head_dim)
        angles = rotation(positions.reshape(-1), inverse)
        tiles = find_tiles(positions, ends, tile)
        graphdef, stacked = nnx.split(self.layers)

        def step(x, params):
            layer = nnx.merge(graphdef, params)
            return layer(x, angles, ends, tiles, tile), None

        x, _ = lax.scan(step, self.embed(tokens.reshape(-1)), stacked)
        return self.final_norm(x).reshape(*tokens.shape, -1)

    @property
    def output_table(self) -> Float[Array, "V E"]:
        """The head's weights: row v gives token v its logit."""
        return (self.embed.embedding if self.lm_head is None else self.lm_head.kernel)[...]
