"""Fixed-shape arrays that scoring and fine-tuning take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from instructjax.errors import UsageError

# Numbers, or what a program is compiled for in their place. No one computes with the latter, so a
# type checker need not know.
if TYPE_CHECKING:
    Values = Array | np.ndarray
else:
    Values = Array | np.ndarray | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens, and which of their next tokens are scored.

    Several batches of one shape may be stacked on leading axes A.

    Attributes:
      tokens: ids; padding may hold any id, it is never told from its value.
      positions: depth of each token in its own sequence.
      ends: the first index of the row that no longer sees this token; 0 for padding. Query q
        attends to key k iff k <= q < ends[k].
      sources: index in the row of the token whose hidden state predicts each scored token.
      targets: id of each scored token.
      num_scored: how many entries of `sources` and `targets` count; the rest are padding.
      tile: queries and keys a tile of attention; part of the compiled program, not of the data.
    """

    tokens: Int[Values, "*A B T"]
    positions: Int[Values, "*A B T"]
    ends: Int[Values, "*A B T"]
    sources: Int[Values, "*A B M"]
    targets: Int[Values, "*A B M"]
    num_scored: Int[Values, "*A B"]
    tile: int = field(default=64, metadata={"static": True})


def batch_from_lengths(
    tokens: Int[Array, "B T"],
    prompt_lengths: Int[Array, " B"],
    lengths: Int[Array, " B"],
    *,
    tile: int = 64,
) -> Batch:
    """One sequence a row, prompt then response, right-padded: masks come from lengths alone.

    Traceable: it may be called inside jit, vmap, pmap and shard_map. A `prompt_lengths` of 0 is
    read as 1, since the first token of a sequence has nothing to be predicted from.

    Lengths are checked where they are known. Traced ones cannot be, and neither can ids: they
    must be of the vocabulary, since XLA takes the nearest row of the embedding for any other.

    Args:
      tokens: prompt and response ids, then padding.
      prompt_lengths: tokens before the response, fewer than `lengths`.
      lengths: tokens in all, from 1 to T.

    Raises:
      UsageError: lengths that leave nothing to score, or that the rows do not have.

    >>> batch = batch_from_lengths(jnp.array([[5, 6, 7, 0]]), jnp.array([1]), jnp.array([3]))
    >>> batch.sources[0, :2].tolist(), batch.targets[0, :2].tolist(), batch.num_scored.tolist()
    ([0, 1], [6, 7], [2])
    """
    _check_lengths(prompt_lengths, lengths, tokens.shape[1])
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    first = jnp.maximum(prompt_lengths, 1)
    sources = jnp.minimum(index + first[:, None] - 1, tokens.shape[1] - 1)
    targets = jnp.take_along_axis(tokens, jnp.minimum(sources + 1, tokens.shape[1] - 1), axis=1)
    return Batch(
        tokens=tokens,
        positions=index,
        ends=jnp.where(index < lengths[:, None], lengths[:, None], 0),
        sources=sources,
        targets=targets,
        num_scored=jnp.maximum(lengths - first, 0),
        tile=tile,
    )


def _check_lengths(prompt_lengths: Int[Array, " B"], lengths: Int[Array, " B"], width: int) -> None:
    known = [_find_values(prompt_lengths), _find_values(lengths)]
    prompts, totals = known
    wrong: list[tuple[np.ndarray, str]] = []
    if totals is not None:
        wrong.append((totals < 1, "a sequence without tokens"))
        wrong.append((totals > width, f"longer than the row, which has {width} tokens"))
    if prompts is not None:
        wrong.append((prompts < 0, "a prompt of negative length"))
    if prompts is not None and totals is not None:
        wrong.append((np.maximum(prompts, 1) >= totals, "no response after the prompt"))
    for mask, problem in wrong:
        if mask.any():
            row = int(mask.argmax())
            shown = ["unknown" if values is None else int(values[row]) for values in known]
            raise UsageError(
                f"{problem}: prompt length {shown[0]}, length {shown[1]}",
                row=f"row {row + 1}",
                remedy="give 0 <= prompt_lengths < lengths <= T, and at least one scored token",
            )


def _find_values(lengths: Int[Array, " B"]) -> np.ndarray | None:
    """The numbers, or None where they are traced or partly on another process' devices."""
    if isinstance(lengths, Tracer):
        return None
    if isinstance(lengths, jax.Array) and not lengths.is_fully_addressable:
        return None
    return np.asarray(lengths)
