"""A mixture of experts in place of an MLP: each token goes through the few that its router picks.

Tokens are sorted by expert, so that each expert multiplies its own in one grouped product. What an
expert gives a token comes from that token alone; the sum over experts is taken in the order of
the router's preference, whatever else is in the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.config import DecoderConfig
from instructjax.models.grouped import grouped_matmul
from instructjax.models.linear import Linear


def route(
    logits: Float[Array, "N X"], count: int, *, normalize: bool
) -> tuple[Float[Array, "N count"], Int[Array, "N count"]]:
    """Weights and numbers of the `count` experts that each token goes to, the likeliest first.

    Args:
      logits: of the router.
      count: experts a token.
      normalize: the weights of a token add up to 1; else they are probabilities among all experts.

    >>> weights, chosen = route(jnp.log(jnp.array([[0.5, 0.125, 0.375]])), 2, normalize=True)
    >>> [round(float(weight), 3) for weight in weights[0]], chosen.tolist()
    ([0.571, 0.429], [[0, 2]])
    """
    weights, chosen = lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), count)
    weights = weights / weights.sum(-1, keepdims=True) if normalize else weights
    return weights.astype(logits.dtype), chosen


def route_by_sigmoid(
    logits: Float[Array, "N X"],
    correction: Float[Array, " X"],
    count: int,
    *,
    normalize: bool,
    groups: int = 1,
    groups_used: int = 1,
) -> tuple[Float[Array, "N count"], Int[Array, "N count"]]:
    """The same where an expert's weight is the sigmoid of its logit (DeepSeek-V3).

    Args:
      logits: of the router, float32.
      correction: added to the sigmoids to choose from, not to the weights.
      count: experts a token.
      normalize: the weights of a token add up to 1.
      groups, groups_used: experts stand in `groups` groups of equal size, and a token goes to
        experts of those `groups_used` groups whose two best have the largest sum.

    >>> logits, correction = jnp.array([[0.0, 2.0, 1.0, 1.0]]), jnp.zeros(4)
    >>> route_by_sigmoid(logits, correction, 1, normalize=True, groups=2)[1].tolist()
    [[2]]
    """
    scores = jax.nn.sigmoid(logits)
    corrected = scores + correction
    if groups > 1:
        grouped = corrected.reshape(len(logits), groups, -1)
        strength = lax.top_k(grouped, 2)[0].sum(-1)
        used = lax.top_k(strength, groups_used)[1]
        kept = (used[:, :, None] == jnp.arange(groups)).any(1)
        corrected = jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(corrected.shape)
    _, chosen = lax.top_k(corrected, count)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    weights = weights / (weights.sum(-1, keepdims=True) + 1e-20) if normalize else weights
    return weights, chosen


class Router(Linear):
    """A score an expert; with sigmoids, in float32 and with a correction that is not trained."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        super().__init__(
            config.hidden_size, config.num_experts, bias=config.expert_bias, dtype=dtype
        )
        self.config = config
        self.correction = (
            nnx.Param(jnp.zeros((config.num_experts,), jnp.float32))
            if config.router == "sigmoid"
            else None
        )

    def choose(
        self, x: Float[Array, "N E"]
    ) -> tuple[Float[Array, "N count"], Int[Array, "N count"]]:
        """Weights and numbers of each token's experts."""
        config = self.config
        count, normalize = config.experts_per_token, config.normalize_experts
        if self.correction is None:
            weights, chosen = route(self(x), count, normalize=normalize)
        else:
            logits = jnp.matmul(
                x.astype(jnp.float32),
                self.kernel[...].astype(jnp.float32),
                precision=lax.Precision.HIGHEST,
            )
            weights, chosen = route_by_sigmoid(
                logits,
                lax.stop_gradient(self.correction[...]),
                count,
                normalize=normalize,
                groups=config.router_groups,
                groups_used=config.router_groups_used,
            )
        return (weights * config.router_multiplier).astype(x.dtype), chosen


class Experts(nnx.Module):
    """The weighted sum of down(silu(gate(x)) * up(x)) over the experts of each token."""

    def __init__(self, config: DecoderConfig, dtype: jnp.dtype):
        count, narrow, wide = config.num_experts, config.hidden_size, config.intermediate_size
        self.config = config
        self.router = Router(config, dtype)
        self.gate = nnx.Param(jnp.zeros((count, narrow, wide), dtype))
        self.up = nnx.Param(jnp.zeros((count, narrow, wide), dtype))
        self.down = nnx.Param(jnp.zeros((count, wide, narrow), dtype))
        biased = config.expert_bias
        self.gate_bias = nnx.Param(jnp.zeros((count, wide), dtype)) if biased else None
        self.up_bias = nnx.Param(jnp.zeros((count, wide), dtype)) if biased else None
        self.down_bias = nnx.Param(jnp.zeros((count, narrow), dtype)) if biased else None

    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        weights, chosen = self.router.choose(x)
        experts = chosen.reshape(-1)
        order = jnp.argsort(experts, stable=True)
        sizes = jnp.bincount(experts, length=self.config.num_experts)
        experts = experts[order]

        def each(rows: Float[Array, "M inner"], kernels: nnx.Param, biases: nnx.Param | None):
            rows = grouped_matmul(rows, kernels[...], sizes)
            return rows if biases is None else rows + biases[...][experts]

        rows = x[order // self.config.experts_per_token]
        gate, up = each(rows, self.gate, self.gate_bias), each(rows, self.up, self.up_bias)
        rows = each(self._gated(gate, up), self.down, self.down_bias)
        by_token = rows[jnp.argsort(order)].reshape(*chosen.shape, -1)
        return (by_token * weights[..., None]).sum(1)

    def _gated(self, gate: Float[Array, "M F"], up: Float[Array, "M F"]) -> Float[Array, "M F"]:
        limit, alpha = self.config.swiglu_limit, self.config.swiglu_alpha
        if limit is None:
            return jax.nn.silu(gate) * up
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)
