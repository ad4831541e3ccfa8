"""Hidden states of one request, for questions about whole next-token distributions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from instructjax.batching.batch import Batch, batch_from_lengths
from instructjax.batching.packing import row_length_for
from instructjax.models.model import Model
from instructjax.prompts.request import Request
from instructjax.scoring.head import cap_logits, compute_logits

CHUNK = 64


def hidden_before_targets(
    model: Model, request: Request, *, and_after: bool = False
) -> Float[Array, "M E"]:
    """The hidden state that predicts each scored token of a request, in order.

    Args:
      model: whose states.
      request: ids with the spans that are scored.
      and_after: also the state after the last id, which predicts what would follow it.

    Returns:
      As many states as there are scored tokens (and one), then padding: M is one of few sizes.
    """
    length = len(request.ids) if and_after else request.spans[-1][1] - 1
    tokens = np.zeros((1, row_length_for(length)), np.int32)
    tokens[0, :length] = request.ids[:length]
    sources = [np.arange(start - 1, stop - 1) for start, stop in request.spans]
    if and_after:
        sources.append(np.array([length - 1]))
    at = np.concatenate(sources)
    padded = np.zeros(row_length_for(len(at)), np.int32)
    padded[: len(at)] = at
    batch = batch_from_lengths(
        jnp.asarray(tokens), jnp.array([1], jnp.int32), jnp.array([length], jnp.int32)
    )
    return _states(model.graphdef, model.params, batch)[jnp.asarray(padded)]


def output_table(model: Model) -> Float[Array, "V E"]:
    """The head's weights: row v gives token v its logit."""
    return nnx.merge(model.graphdef, model.params).output_table


@jax.jit
def _states(graphdef: nnx.GraphDef, params: nnx.State, batch: Batch) -> Float[Array, "T E"]:
    model = nnx.merge(graphdef, params)
    return model(batch.tokens, batch.positions, batch.ends, tile=batch.tile)[0]


def map_chunks(
    function: Callable[..., Float[Array, chunk * out]], *hidden: Float[Array, "M _"]
) -> Float[Array, M * out]:
    """`function` of `CHUNK` rows of each array at a time, so that it may hold their logits."""
    rows = hidden[0].shape[0]
    size = min(CHUNK, rows)
    short = -rows % size
    chunks = [jnp.pad(h, ((0, short), (0, 0))).reshape(-1, size, h.shape[-1]) for h in hidden]
    results = lax.map(lambda parts: function(*parts), tuple(chunks))
    return results.reshape(-1, *results.shape[2:])[:rows]


def log_softmax_of(
    hidden: Float[Array, "M E"], table: Float[Array, "V E"], softcap: float | None = None
) -> Float[Array, "M V"]:
    """log p over the vocabulary, nats, in float32."""
    return jax.nn.log_softmax(cap_logits(compute_logits(hidden, table), softcap))


def set_log_probs(
    hidden: Float[Array, "M E"],
    table: Float[Array, "V E"],
    sets: Bool[Array, "S V"],
    softcap: float | None = None,
) -> Float[Array, "M S"]:
    """Log-probability that the next token is in each of several sets of tokens, nats.

    Args:
      hidden: states that predict; logits exist for a chunk of them at a time.
      table: the head's weights.
      sets: which tokens are in which set.
      softcap: of the logits, if the model has one.

    >>> sets = jnp.array([[True, True, False, True]])
    >>> logs = set_log_probs(jnp.zeros((1, 2)), jnp.eye(4, 2), sets)  # uniform over four
    >>> round(float(jnp.exp(logs[0, 0])), 4)
    0.75
    """

    def one_chunk(h):
        logs = log_softmax_of(h, table, softcap)
        inside = [jnp.where(members, logs, -jnp.inf) for members in sets]
        return jnp.stack([jax.nn.logsumexp(x, axis=-1) for x in inside], axis=-1)

    return map_chunks(one_chunk, hidden)
