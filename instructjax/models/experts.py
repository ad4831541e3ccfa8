"""A mixture of experts in place of an MLP: each token goes through the few that its router picks.

Tokens are sorted by expert, so that each expert multiplies its own in one ragged product. What an
expert gives a token comes from that token alone; the sum over experts is taken in the order of
the router's preference, whatever else is in the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.linear import Linear, precision_of


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


class Experts(nnx.Module):
    """The weighted sum of down(silu(gate(x)) * up(x)) over the experts of each token.

    Args:
      features, wide: widths of the residual stream and within an expert.
      experts, per_token: how many there are, and how many a token goes to.
      normalize: see `route`.
      dtype: of the parameters.
    """

    def __init__(
        self,
        features: int,
        wide: int,
        *,
        experts: int,
        per_token: int,
        normalize: bool,
        dtype: jnp.dtype,
    ):
        self.per_token, self.normalize = per_token, normalize
        self.router = Linear(features, experts, bias=False, dtype=dtype)
        self.gate = nnx.Param(jnp.zeros((experts, features, wide), dtype))
        self.up = nnx.Param(jnp.zeros((experts, features, wide), dtype))
        self.down = nnx.Param(jnp.zeros((experts, wide, features), dtype))

    def __call__(self, x: Float[Array, "N E"]) -> Float[Array, "N E"]:
        weights, chosen = route(self.router(x), self.per_token, normalize=self.normalize)
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=self.gate.shape[0])

        def each(rows: Float[Array, "M inner"], kernels: nnx.Param) -> Float[Array, "M outer"]:
            return lax.ragged_dot(rows, kernels[...], sizes, precision=precision_of(rows.dtype))

        rows = x[order // self.per_token]
        rows = each(jax.nn.silu(each(rows, self.gate)) * each(rows, self.up), self.down)
        by_token = rows[jnp.argsort(order)].reshape(*chosen.shape, -1)
        return (by_token * weights[..., None]).sum(1)
