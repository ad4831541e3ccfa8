r"""Objectives as pure functions of log-probabilities.

A loss takes (graphdef, params, batch) and returns (weighted sum, total weight), both float32
scalars. Sums over micro-batches, packs and shards are sums of the two; only the optimizer's step
divides. A new objective is one function of log-probs and of the weights in its batch.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from instructjax.finetuning.batch import SftBatch
from instructjax.scoring.log_probs import token_log_probs


def sft_loss(
    graphdef: nnx.GraphDef, params: nnx.State, batch: SftBatch, *, remat: str = "none"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""\(-\sum w_t \log p(y_t \mid c, z, y_{<t})\) in nats, and \(\sum w_t\).

    Args:
      graphdef, params: the model.
      batch: rows and weights.
      remat: what the backward pass computes again; see `instructjax.models.decoder`.
    """
    log_probs = token_log_probs(graphdef, params, batch.batch, remat=remat)
    weights = jnp.asarray(batch.weights, jnp.float32)
    return -(weights * log_probs).sum(), weights.sum()
