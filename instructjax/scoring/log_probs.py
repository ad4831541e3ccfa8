"""log Pr(y | c, z) as pure functions of (graphdef, params, batch).

They hold no state and do no input or output, so they run unchanged under jit, grad, vmap, pmap,
shard_map and sharded over a mesh with Auto axes (under jit, Explicit axes, which `jax.make_mesh`
may choose by itself, raise a ShardingTypeError: give it `axis_types`). Split a model once (`Model`
holds the two halves) and pass them in.

Ids must be of the vocabulary. A traced value cannot be checked, and XLA takes the nearest row for
an id that has none, which gives a number and no error.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from instructjax.batching.batch import Batch
from instructjax.scoring.head import TokenScores, cap_logits, compute_logits, score_positions
from instructjax.scoring.log_prob_head import log_prob_positions, weighted_log_prob


def scored_mask(batch: Batch) -> Bool[Array, "B M"]:
    """Which entries of `batch.sources` count, from lengths alone."""
    return jnp.arange(batch.sources.shape[1]) < batch.num_scored[:, None]


def token_scores(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch, *, top_k: int = 0
) -> TokenScores:
    """Every scored token's log-probability, greedy match, entropy and rank, [B, M] each.

    Entries past `batch.num_scored` are zero. Scored positions of all rows are brought together
    before the head, so its cost follows their number and not the batch's shape.
    """
    *scored, order, options = _bring_together(graphdef, params, batch)
    flat = score_positions(*scored, top_k=top_k, **options)
    back = _put_back(order, batch)
    return TokenScores(*(back(getattr(flat, name)) for name in flat.__dataclass_fields__))


def _bring_together(graphdef: nnx.GraphDef, params: nnx.State, batch: Batch, remat: str = "none"):
    """The head's arguments, scored positions of all rows first, the order they came in, and the
    head's options."""
    model = nnx.merge(graphdef, params)
    hidden = model(batch.tokens, batch.positions, batch.ends, tile=batch.tile, remat=remat)
    options: dict[str, Any] = {"softcap": model.config.logit_softcap, "split": model.table_split}
    live = scored_mask(batch).reshape(-1)
    row_start = jnp.arange(batch.tokens.shape[0])[:, None] * batch.tokens.shape[1]
    order = jnp.argsort(~live, stable=True)
    sources = (batch.sources + row_start).reshape(-1)[order]
    targets = batch.targets.reshape(-1)[order]
    flat, table = hidden.reshape(-1, hidden.shape[-1]), model.output_table
    return flat, table, sources, targets, live.sum(), order, options


def _put_back(order, batch: Batch):
    back = jnp.argsort(order)
    return lambda x: x[back].reshape(*batch.sources.shape, *x.shape[1:])


def token_log_probs(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch, *, remat: str = "none"
) -> Float[Array, "B M"]:
    """log p of every scored token, in nats; zero past `batch.num_scored`. Differentiable.

    `remat` says what a backward pass computes again; see `Decoder`.
    """
    *scored, order, options = _bring_together(graphdef, params, batch, remat)
    logs = log_prob_positions(*scored, **options)
    return _put_back(order, batch)(logs)


def weighted_sum_log_probs(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    batch: Batch,
    weights: Float[Array, "B M"],
    *,
    remat: str = "none",
) -> Float[Array, ""]:
    """Sum of `token_log_probs`, each times its weight; value and gradient cost less together."""
    hidden, table, sources, targets, count, order, options = _bring_together(
        graphdef, params, batch, remat
    )
    flat = weights.reshape(-1)[order]
    return weighted_log_prob(hidden, table, sources, targets, flat, count, **options)


def sequence_log_probs(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch
) -> Float[Array, " B"]:
    """log Pr of everything scored in each row: the sum of its tokens, in nats."""
    return token_log_probs(graphdef, params, batch).sum(axis=-1)


def next_token_log_probs(
    graphdef: nnx.GraphDef, params: nnx.State, batch: Batch, positions: Int[Array, " P"]
) -> Float[Array, "B P V"]:
    """log p over the whole vocabulary after the given positions of each row, in nats.

    For looking at a distribution, not for scoring: it holds P x V numbers a row.
    """
    model = nnx.merge(graphdef, params)
    hidden = model(batch.tokens, batch.positions, batch.ends, tile=batch.tile)[:, positions]
    logits = compute_logits(hidden, model.output_table)
    return jax.nn.log_softmax(cap_logits(logits, model.config.logit_softcap))
