"""Latent attention: keys and values of all heads are expanded from one short vector a token."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from instructjax.models.attention import Look
from instructjax.models.config import DecoderConfig
from instructjax.models.linear import Linear, RMSNorm
from instructjax.models.rotary import rotate

# The norms within take no epsilon from the configuration.
_EPS = 1e-6


class LatentAttention(nnx.Module):
    """Self-attention of DeepSeek-V2 and V3 (DeepSeek-AI 2024, section 2.1).

    The last `rotary_dim` features of queries and keys are turned; those of keys are the same for
    all heads. Scores are sums over features, so turned features may stand first, as `rotate` has
    them, if they do so in both.
    """

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        latent = config.latent
        assert latent is not None
        hidden, heads, bias = config.hidden_size, config.num_heads, config.attention_bias
        self.latent, self.head_dim = latent, config.head_dim
        queries, rank = heads * config.head_dim, latent.query_rank
        self.q = None if rank else Linear(hidden, queries, bias=False, dtype=dtype)
        self.q_down = Linear(hidden, rank, bias=bias, dtype=dtype) if rank else None
        self.q_norm = RMSNorm(rank, eps=_EPS, dtype=dtype) if rank else None
        self.q_up = Linear(rank, queries, bias=False, dtype=dtype) if rank else None
        kept = latent.rank + latent.rotary_dim
        self.kv_down = Linear(hidden, kept, bias=bias, dtype=dtype)
        self.kv_norm = RMSNorm(latent.rank, eps=_EPS, dtype=dtype)
        expanded = heads * latent.expanded_dim(config.head_dim)
        self.kv_up = Linear(latent.rank, expanded, bias=False, dtype=dtype)
        self.o = Linear(heads * latent.value_dim, hidden, bias=bias, dtype=dtype)
        scale = config.attention_scale
        self.options = () if scale is None else (("scale", scale),)

    def __call__(self, x: Float[Array, "N E"], angles, look: Look) -> tuple[Array, Any]:
        latent, count = self.latent, len(x)
        still = self.head_dim - latent.rotary_dim
        q = self._queries(x).reshape(count, -1, self.head_dim)
        q = self._turned_first(q[..., still:], q[..., :still], angles)
        kept = self.kv_down(x)
        expanded = self.kv_up(self.kv_norm(kept[:, : latent.rank])).reshape(count, q.shape[1], -1)
        turned = kept[:, None, latent.rank :]
        k = self._turned_first(turned, expanded[..., :still], angles)
        v = expanded[..., still:]
        seen, own = look(q, k, v, **dict(self.options))
        return self.o(seen.reshape(count, -1)), own

    def _queries(self, x: Float[Array, "N E"]) -> Float[Array, "N Q"]:
        if self.q is not None:
            return self.q(x)
        assert self.q_down is not None and self.q_norm is not None and self.q_up is not None
        return self.q_up(self.q_norm(self.q_down(x)))

    def _turned_first(
        self, turned: Float[Array, "N some R"], still: Float[Array, "N heads S"], angles
    ) -> Float[Array, "N heads D"]:
        if self.latent.interleaved:
            pairs = turned.reshape(*turned.shape[:-1], -1, 2)
            turned = pairs.swapaxes(-1, -2).reshape(turned.shape)
        turned = rotate(turned, *angles)
        turned = jnp.broadcast_to(turned, (*still.shape[:-1], turned.shape[-1]))
        return jnp.concatenate([turned, still], axis=-1)
