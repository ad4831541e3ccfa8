"""Rows of training sequences, with what each of their tokens counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Float, Int

from instructjax.batching.batch import Batch, Values
from instructjax.batching.packing import Row, join_rows
from instructjax.batching.prefix_tree import common_prefix, sort_key, worth_sharing
from instructjax.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightedIds:
    """One training sequence.

    Attributes:
      ids: int32 [n], prompt and response together.
      weights: float32 [n], of log p of each token given those before it; the first token has
        nothing to be predicted from, and weighs 0.
      row: where the sequence came from, for errors.

    Raises:
      DataError: all weights are 0, one is negative or not finite, or the first is not 0.
    """

    ids: np.ndarray
    weights: np.ndarray
    row: str = ""
    nonzero: int = field(init=False)

    def __post_init__(self) -> None:
        weights = self.weights
        problem = None
        if weights.shape != self.ids.shape or weights.ndim != 1:
            problem = f"{weights.shape} weights for ids of shape {self.ids.shape}"
        elif not (np.isfinite(weights).all() and (weights >= 0).all()):
            problem = "a weight is negative or not a finite number"
        elif len(weights) and weights[0]:
            problem = "the first token has a weight, but nothing to be predicted from"
        elif not weights.any():
            problem = "nothing to learn: every token has weight 0"
        if problem:
            raise DataError(
                problem,
                row=self.row or None,
                remedy="give a response, and a weight of it that is greater than 0",
            )
        object.__setattr__(self, "nonzero", int(np.count_nonzero(weights)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SftBatch:
    """A batch and the weight of each of its scored tokens.

    Attributes:
      batch: rows; scored are the tokens whose weight is not 0.
      weights: of each scored token; 0 past `batch.num_scored`.
    """

    batch: Batch
    weights: Float[Values, "*A B M"]


def make_sft_batch(
    rows: Sequence[Sequence[WeightedIds]],
    *,
    length: int,
    max_scored: int | None = None,
    num_rows: int | None = None,
    share: bool = False,
    tile: int = 64,
) -> SftBatch:
    """Rows of one length, each with its sequences one after another; none sees another.

    A sequence's last token is a target only, so a row of sequences n_i fits if the sum of
    n_i - 1 does. Padding is known by `ends`, never by its id.

    With `share`, what a sequence begins with in common with the one before it in its row, as the
    instruction, stands once for both, if they come in the order of their ids; what comes again is
    computed again. Loss and gradient are the same: a token's hidden state depends on those before
    it alone, and the gradients that reach it add up. That is not so where a model's frequencies
    depend on how long a sequence is (`instructjax.models.rotary.by_length`).

    Args:
      rows: the sequences of each row.
      length: T, positions a row.
      max_scored: M, scored tokens a row; `length` by default, which is always enough.
      num_rows: B, filled up with empty rows.
      share: compute once what neighbours in a row begin with in common.
      tile: see `Batch`.

    Returns:
      Arrays of numpy.

    Raises:
      UsageError: a row does not fit, or there are too many of them, or none.

    >>> one = WeightedIds(ids=np.array([5, 6, 2]), weights=np.array([0.0, 0.5, 1.0]))
    >>> two = WeightedIds(ids=np.array([7, 2]), weights=np.array([0.0, 1.0]))
    >>> made = make_sft_batch([[one, two]], length=4)
    >>> made.batch.tokens.tolist(), made.batch.positions.tolist(), made.batch.ends.tolist()
    ([[5, 6, 7, 0]], [[0, 1, 0, 0]], [[2, 2, 3, 0]])
    >>> made.batch.sources[0, :3].tolist(), made.batch.targets[0, :3].tolist()
    ([0, 1, 2], [6, 2, 2])
    >>> made.weights.tolist()
    [[0.5, 1.0, 1.0, 0.0]]
    >>> other = WeightedIds(ids=np.array([5, 6, 7, 2]), weights=np.array([0, 1.0, 1.0, 1.0]))
    >>> made = make_sft_batch([[one, other]], length=4, share=True)
    >>> made.batch.tokens.tolist(), made.batch.ends.tolist(), made.weights.tolist()
    ([[5, 6, 7, 0]], [[3, 3, 3, 0]], [[1.5, 1.0, 1.0, 1.0]])
    """
    count = len(rows) if num_rows is None else num_rows
    width = length if max_scored is None else max_scored
    if len(rows) > count or not count:
        raise UsageError(f"{len(rows)} rows for a batch of {count}")
    filled = [*rows, *[()] * (count - len(rows))]
    return lay_out(filled, length, width, share=share, tile=tile)[0]


def lay_out(
    rows: Sequence[Sequence[WeightedIds]], length: int, width: int, *, share: bool, tile: int
) -> tuple[SftBatch, list[list[Int[np.ndarray, " nonzero"]]]]:
    """As `make_sft_batch`, and for each sequence of each row where its scored tokens are in M.

    Args:
      rows: B of them, at least one.
      length, width: T and M.
      share, tile: as there.
    """
    weights = np.zeros((len(rows), width), np.float32)
    batches: list[Batch] = []
    entries: list[list[Int[np.ndarray, " nonzero"]]] = []
    for i, members in enumerate(rows):
        row = Row(sum(len(sequence.ids) for sequence in members))
        entries.append([])
        ids = [sequence.ids for sequence in members]
        prefixes = shared_prefixes(ids) if share else [0] * len(ids)
        for sequence, shared in zip(members, prefixes, strict=True):
            (scored,) = np.nonzero(sequence.weights)
            (turns,) = np.nonzero(np.diff(sequence.weights != 0, prepend=False, append=False))
            found = row.add(sequence.ids, turns.reshape(-1, 2).tolist(), shared)
            if row.stop > length or row.num_scored > width:
                raise UsageError(
                    f"row {i + 1} needs more than {length} positions or {width} scored tokens",
                    row=sequence.row or None,
                    remedy="put fewer sequences into a row, or truncate them",
                )
            weights[i, found] += sequence.weights[scored]
            entries[-1].append(found)
        batches.append(row.finish(tile, length, width))
    return SftBatch(batch=join_rows(batches), weights=weights), entries


def shared_prefixes(row: Sequence[Int[np.ndarray, " _"]]) -> list[int]:
    """Positions that each sequence takes over from the one before it in a row that shares.

    0 where it does not follow that in the order of ids, or came already: then a new tree begins.

    >>> one, two = np.array([5, 6, 7, 2]), np.array([5, 6, 7, 8, 2])
    >>> shared_prefixes([one, two, two, one])
    [0, 3, 0, 0]
    """
    found: list[int] = []
    tree: set[bytes] = set()
    for before, ids in zip([None, *row], row, strict=False):
        whole, shared = ids.tobytes(), 0
        if before is None or whole in tree or sort_key(ids[:-1]) < sort_key(before[:-1]):
            tree = set()
        else:
            shared = worth_sharing(common_prefix(before[:-1], ids[:-1]), len(ids) - 1)
        tree.add(whole)
        found.append(shared)
    return found


def stack_batches(batches: Sequence[SftBatch]) -> SftBatch:
    """Micro-batches of one shape on a new leading axis, as `make_train_step` takes them."""
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)
