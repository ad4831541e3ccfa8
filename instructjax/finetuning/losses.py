r"""Objectives as pure functions of log-probabilities.

A loss takes (graphdef, params, batch) and returns (weighted sum, total weight), both float32
scalars. Sums over micro-batches, packs and shards are sums of the two; only the optimizer's step
divides. A new objective is one function of log-probs and of the weights in its batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from instructjax.finetuning.batch import SftBatch
from instructjax.finetuning.pairs import PairBatch, pair_log_probs
from instructjax.scoring.log_probs import weighted_sum_log_probs


def sft_loss(
    graphdef: nnx.GraphDef, params: nnx.State, batch: SftBatch, *, remat: str = "none"
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""\(-\sum w_t \log p(y_t \mid c, z, y_{<t})\) in nats, and \(\sum w_t\).

    Args:
      graphdef, params: the model.
      batch: rows and weights.
      remat: what the backward pass computes again; see `instructjax.models.decoder`.
    """
    weights = jnp.asarray(batch.weights, jnp.float32)
    total = weighted_sum_log_probs(graphdef, params, batch.batch, weights, remat=remat)
    return -total, weights.sum()


def dpo_objective(
    log_probs: Float[Array, "*P 2"],
    reference: Float[Array, "*P 2"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, "*P"]:
    r"""Direct preference optimization (Rafailov et al. 2023), equation 7, in nats a pair.

    \(-(1-\epsilon) \log \sigma(\beta m) - \epsilon \log \sigma(-\beta m)\), where m is by how much
    more the model prefers the chosen response, side 0, to the rejected one than the reference does.

    >>> policy, reference = jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -2.0]])
    >>> round(float(dpo_objective(policy, reference, beta=0.5)[0]), 4)  # -log sigmoid(0.5 * 2)
    0.3133
    """
    gain = log_probs - reference
    margin = beta * (gain[..., 0] - gain[..., 1])
    keep, flip = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * keep - label_smoothing * flip


def dpo_loss(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    batch: PairBatch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    remat: str = "none",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`dpo_objective` summed over pairs by their weights, and the sum of the weights.

    `batch.reference` holds what the reference says: `pair_log_probs` of it, computed once, as with
    `dataclasses.replace(batch, reference=pair_log_probs(graphdef, reference_params, batch))`.
    """
    log_probs = pair_log_probs(graphdef, params, batch, remat=remat)
    reference = jax.lax.stop_gradient(jnp.asarray(batch.reference))
    each = dpo_objective(log_probs, reference, beta=beta, label_smoothing=label_smoothing)
    weights = jnp.asarray(batch.weights, jnp.float32)
    return (weights * each).sum(), weights.sum()
