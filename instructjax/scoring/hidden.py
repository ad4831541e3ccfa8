"""Hidden states before scored tokens, for questions about whole next-token distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from instructjax.batching.batch import Batch
from instructjax.batching.packing import pack
from instructjax.models.model import Model
from instructjax.models.rotary import length_classes
from instructjax.models.spmd import over_rows
from instructjax.prompts.request import Request
from instructjax.scoring.dispatch import compute_rows
from instructjax.scoring.row_memory import longest_row

WINDOW_TOKENS = 1 << 13

T = TypeVar("T")


def cut_windows(items: Iterable[T], count_tokens: Callable[[T], int]) -> Iterator[list[T]]:
    """Windows of about `WINDOW_TOKENS` scored tokens, so that their states fit into memory.

    >>> [len(window) for window in cut_windows([5000, 4000, 3], int)]
    [2, 1]
    """
    window: list[T] = []
    tokens = 0
    for item in items:
        window.append(item)
        tokens += count_tokens(item)
        if tokens >= WINDOW_TOKENS:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def hidden_before_targets(
    model: Model, requests: Sequence[Request]
) -> list[Float[np.ndarray, "_ E"]]:
    """The hidden states that predict each request's scored tokens, in order.

    Requests share rows and prefixes, as when they are scored.

    Args:
      model: whose states.
      requests: few enough to hold a state a scored token in memory.
    """
    found: list[np.ndarray] = [np.empty((0, 0))] * len(requests)

    def compute(batch: Batch) -> Array:
        if model.mesh is None:
            return _states(model.graphdef, model.params, batch)
        options: dict[str, Any] = {"mesh": model.mesh, "rules": model.rules}
        return _states_on_mesh(model.graphdef, model.params, batch, **options)

    rows = pack(requests, apart=length_classes(model.config), longest=longest_row(model))
    named = ((None, row) for row in rows)
    for _, row, states in compute_rows(named, compute, together=model.rows_together):
        for index, entries in row.members:
            found[index] = states[0, entries]
    return found


def output_table(model: Model) -> Float[Array, "V E"]:
    """The head's weights: row v gives token v its logit."""
    return nnx.merge(model.graphdef, model.params).output_table


def _find_states(graphdef: nnx.GraphDef, params: nnx.State, batch: Batch) -> Float[Array, "B M E"]:
    model = nnx.merge(graphdef, params)
    hidden = model(batch.tokens, batch.positions, batch.ends, tile=batch.tile)
    return jnp.take_along_axis(hidden, batch.sources[..., None], axis=1)


_states = jax.jit(_find_states)


@partial(jax.jit, static_argnames=("mesh", "rules"))
def _states_on_mesh(graphdef, params, batch, *, mesh, rules):
    return over_rows(_find_states, graphdef, mesh=mesh, rules=rules)(params, batch)
