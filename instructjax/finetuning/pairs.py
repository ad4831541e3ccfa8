"""Two responses to one prompt, the preferred one first, in rows that compute the prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from instructjax.batching.batch import Batch
from instructjax.batching.packing import Row, join_rows
from instructjax.batching.prefix_tree import common_prefix, input_ids, worth_sharing
from instructjax.errors import DataError, UsageError
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs

Pair = tuple[Request, Request]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Rows of pairs; of each pair, side 0 is the chosen response and side 1 the rejected one.

    Attributes:
      batch: rows; a prompt stands once, and its two responses branch off.
      entries: which scored tokens of the row each response adds up; a token that both begin with
        stands once and is listed twice.
      owners: the response that each entry belongs to, 2 * pair + side; 2 P for padding.
      weights: of each pair; 0 for places that hold none.
      reference: log Pr of both responses under the model that is compared with, in nats.
    """

    batch: Batch
    entries: Int[Array | np.ndarray, "*A B C"]
    owners: Int[Array | np.ndarray, "*A B C"]
    weights: Float[Array | np.ndarray, "*A B P"]
    reference: Float[Array | np.ndarray, "*A B P 2"]


def make_pair_batch(
    rows: Sequence[Sequence[Pair]],
    *,
    length: int,
    max_pairs: int,
    weights: Sequence[Sequence[float]] | None = None,
    tile: int = 64,
) -> PairBatch:
    """Rows of (chosen, rejected) with the same prompt; reference log-probs are left 0.

    Args:
      rows: the pairs of each row.
      length: T, positions a row; there are twice as many entries.
      max_pairs: P, pairs a row.
      weights: of each pair; 1 by default.
      tile: see `Batch`.

    Returns:
      Arrays of numpy.

    Raises:
      DataError: the two responses of a pair are the same.
      UsageError: a row does not fit.
    """
    entries, owners = np.zeros((2, len(rows), 2 * length), np.int32)
    owners[...] = 2 * max_pairs
    counted = np.zeros((len(rows), max_pairs), np.float32)
    batches = []
    for i, pairs in enumerate(rows):
        if len(pairs) > max_pairs:
            raise UsageError(f"row {i + 1} has {len(pairs)} pairs, more than {max_pairs}")
        row, stop = Row(2 * sum(len(r.ids) for pair in pairs for r in pair)), 0
        for number, pair in enumerate(pairs):
            for side, found in enumerate(_add_pair(row, pair)):
                _check_fits(stop + len(found), 2 * length, i, pair[side])
                entries[i, stop : stop + len(found)] = found
                owners[i, stop : stop + len(found)] = 2 * number + side
                stop += len(found)
            _check_fits(max(row.stop, row.num_scored), length, i, pair[0])
        counted[i, : len(pairs)] = 1.0 if weights is None else weights[i]
        batches.append(row.finish(tile, length))
    batch = join_rows(batches)
    reference = np.zeros((*counted.shape, 2), np.float32)
    return PairBatch(
        batch=batch, entries=entries, owners=owners, weights=counted, reference=reference
    )


def _add_pair(row: Row, pair: Pair) -> list[np.ndarray]:
    chosen, rejected = pair
    if np.array_equal(chosen.ids, rejected.ids):
        raise DataError(
            "the chosen response is the rejected one",
            row=f"row {chosen.row + 1}",
            remedy="give two different responses",
        )
    first, second = input_ids(chosen), input_ids(rejected)
    shared = worth_sharing(common_prefix(first, second), len(second))
    return [
        row.add(request.ids[: len(ids) + 1], request.spans, common)
        for request, ids, common in ((chosen, first, 0), (rejected, second, shared))
    ]


def _check_fits(size: int, room: int, index: int, request: Request) -> None:
    if size > room:
        raise UsageError(
            f"row {index + 1} needs more than {room} places",
            row=f"row {request.row + 1}",
            remedy="put fewer pairs into a row, or truncate them",
        )


def pair_log_probs(
    graphdef: nnx.GraphDef, params: nnx.State, batch: PairBatch, *, remat: str = "none"
) -> Float[Array, "B P 2"]:
    """log Pr(y | c, z) of the chosen and the rejected response of each pair, in nats."""
    tokens = token_log_probs(graphdef, params, batch.batch, remat=remat)
    each = jnp.take_along_axis(tokens, jnp.asarray(batch.entries), axis=1)
    rows, pairs = batch.weights.shape
    sums = jnp.zeros((rows, 2 * pairs + 1), each.dtype)
    sums = sums.at[jnp.arange(rows)[:, None], batch.owners].add(each)
    return sums[:, :-1].reshape(rows, pairs, 2)
