"""Sums over the vocabulary, with logits for a tile of it at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from instructjax.scoring.head import cap_logits, compute_logits

ROWS = 128
COLUMNS = 8192
# Blocks of positions: few, so that few programs are compiled, and one for a handful.
BLOCKS = (16, ROWS)

T = TypeVar("T")
Softcap = Float[Array, ""] | float | None
LogSum = tuple[Float[Array, "*M"], Float[Array, "*M"]]


def fold_vocabulary(
    step: Callable[[T, Int[Array, " W"], tuple[Float[Array, "*M W"], ...]], T],
    start: T,
    *heads: tuple[Float[Array, "*M _"], Float[Array, "V _"], Softcap],
) -> T:
    """Goes over the vocabulary in tiles of at most `COLUMNS`.

    Args:
      step: takes the result so far, the ids of a tile and its logits by each head; gives the next
        result. The last tile is moved back to fit: logits of ids that came before are -inf.
      start: the first result.
      heads: hidden states, output table and soft cap of the logits, of models with one vocabulary.
    """
    vocab = heads[0][1].shape[0]
    width = min(COLUMNS, vocab)

    def one_tile(j, result):
        first = jnp.minimum(j * width, vocab - width)
        ids = first + jnp.arange(width)
        logits = (
            cap_logits(
                compute_logits(hidden, lax.dynamic_slice_in_dim(table, first, width)), softcap
            )
            for hidden, table, softcap in heads
        )
        return step(result, ids, tuple(jnp.where(ids >= j * width, x, -jnp.inf) for x in logits))

    return lax.fori_loop(0, -(-vocab // width), one_tile, start)


def start_log_sum(*shape: int) -> LogSum:
    """The log-sum-exp of no terms: the greatest of them, and their sum relative to it."""
    return jnp.full(shape, -jnp.inf), jnp.zeros(shape)


def add_log_sum(running: LogSum, terms: Float[Array, "*M W"]) -> LogSum:
    """Goes on with a log-sum-exp over the last axis, in float32."""
    top, total = running
    new_top = jnp.maximum(top, terms.max(-1))
    around = jnp.where(jnp.isfinite(new_top), new_top, 0.0)  # no term yet: anything will do
    return new_top, total * jnp.exp(top - around) + jnp.exp(terms - around[..., None]).sum(-1)


def finish_log_sum(running: LogSum) -> Float[Array, "*M"]:
    """The log-sum-exp of all terms; -inf where there was none.

    >>> parts = jnp.log(jnp.array([[0.5, 0.25], [0.125, 0.125]]))
    >>> running = add_log_sum(add_log_sum(start_log_sum(), parts[0]), parts[1])
    >>> round(float(finish_log_sum(running)), 6)
    0.0
    """
    top, total = running
    return top + jnp.log(total)


def log_mass(
    hidden: Float[Array, "M E"],
    table: Float[Array, "V E"],
    sets: Bool[Array, "S V"],
    softcap: Softcap = None,
) -> Float[Array, "M S"]:
    """Log-probability that the next token is one of a set of tokens, for several sets, nats.

    Args:
      hidden: states that predict.
      table: the head's weights.
      sets: which tokens are in which set.
      softcap: of the logits, if the model has one.

    >>> sets = jnp.array([[True, True, False, True]])
    >>> logs = log_mass(jnp.zeros((1, 2)), jnp.eye(4, 2), sets)  # uniform over four
    >>> round(float(jnp.exp(logs[0, 0])), 4)
    0.75
    """
    with_all = jnp.concatenate([jnp.ones_like(sets[:1]), sets])

    def add(running, ids, logits):
        inside = jnp.where(with_all[:, ids], logits[0], -jnp.inf)
        return add_log_sum(running, inside)

    def one_row(h: Float[Array, " E"]) -> Float[Array, " S"]:
        running = fold_vocabulary(add, start_log_sum(len(with_all)), (h, table, softcap))
        every, *some = finish_log_sum(running)
        return jnp.stack(some) - every

    return lax.map(one_row, hidden, batch_size=ROWS)


def make_blocks(*arrays: np.ndarray) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Rows of arrays in blocks of few shapes, zeros behind the last: how many count, and the block.

    >>> [(count, block[0].shape) for count, block in make_blocks(np.ones((140, 2)))]
    [(128, (128, 2)), (12, (16, 2))]
    """
    for first in range(0, len(arrays[0]), ROWS):
        parts = [array[first : first + ROWS] for array in arrays]
        count = len(parts[0])
        size = next(block for block in BLOCKS if block >= count)
        padding = [((0, size - count), *[(0, 0)] * (part.ndim - 1)) for part in parts]
        yield count, tuple(map(np.pad, parts, padding))
