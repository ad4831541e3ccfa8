"""What each token counts in the loss, from lengths and spans; a token's identity says nothing.

The weight of token i is that of log p(token i | tokens before it). The first token of a sequence
has nothing to be predicted from, and always weighs 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from instructjax.errors import UsageError
from instructjax.finetuning.batch import WeightedIds
from instructjax.prompts.request import Request

Turns = Literal["all", "last"]


def response_mask(
    prompt_lengths: Int[Array, " B"], lengths: Int[Array, " B"], width: int
) -> Bool[Array, "B T"]:
    """Which tokens are of the response, in rows that hold prompt, response and padding.

    Traceable. The first token of a row is of no response, even if there is no prompt.

    >>> response_mask(jnp.array([2, 0]), jnp.array([4, 3]), 5).astype(int).tolist()
    [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
    """
    index = jnp.arange(width)
    return (index >= jnp.maximum(prompt_lengths, 1)[:, None]) & (index < lengths[:, None])


def response_weights(
    prompt_lengths: Int[Array, " B"],
    lengths: Int[Array, " B"],
    width: int,
    *,
    prompt_loss_weight: float = 0.0,
    example_weights: Float[Array, " B"] | None = None,
) -> Float[Array, "B T"]:
    """Weights of tokens in rows of prompt, response and padding. Traceable.

    Args:
      prompt_lengths, lengths: in tokens.
      width: T.
      prompt_loss_weight: of the prompt's tokens, where the response's weigh 1.
      example_weights: each row's weights are multiplied by its own.

    >>> weights = response_weights(jnp.array([2]), jnp.array([4]), 5, prompt_loss_weight=0.25)
    >>> weights.tolist()
    [[0.0, 0.25, 1.0, 1.0, 0.0]]
    """
    index = jnp.arange(width)
    prompt = (index >= 1) & (index < prompt_lengths[:, None])
    mask = response_mask(prompt_lengths, lengths, width)
    weights = jnp.where(mask, 1.0, jnp.where(prompt, prompt_loss_weight, 0.0))
    return weights if example_weights is None else weights * example_weights[:, None]


def weigh_tokens(
    request: Request,
    *,
    turns: Turns = "all",
    prompt_loss_weight: float = 0.0,
    example_weight: float = 1.0,
    turn_weights: Sequence[float] | None = None,
) -> WeightedIds:
    """A request as a training sequence: its scored spans are the assistant's turns.

    Args:
      request: ids and spans.
      turns: learn "all" of the assistant's turns, or the "last" only. Earlier turns then count as
        prompt.
      prompt_loss_weight: of every token outside the turns that are learned.
      example_weight: everything is multiplied by it.
      turn_weights: of each of the assistant's turns, in order; 1 by default.

    Raises:
      UsageError: not one weight a turn.
      DataError: every token weighs 0, or a weight is negative.

    >>> request = Request(ids=np.arange(6), spans=((1, 3), (4, 6)), num_bytes=4)
    >>> weigh_tokens(request, turns="last", prompt_loss_weight=0.5).weights.tolist()
    [0.0, 0.5, 0.5, 0.5, 1.0, 1.0]
    >>> weigh_tokens(request, turn_weights=[1.0, 0.25], example_weight=2.0).weights.tolist()
    [0.0, 2.0, 2.0, 0.0, 0.5, 0.5]
    """
    row = f"row {request.row + 1}"
    each = [1.0] * len(request.spans) if turn_weights is None else list(turn_weights)
    if len(each) != len(request.spans):
        raise UsageError(
            f"{len(each)} turn weights for {len(request.spans)} turns of the assistant",
            row=row,
            remedy="give one weight a turn",
        )
    weights = np.full(len(request.ids), prompt_loss_weight, np.float32)
    weights[0] = 0
    learned = list(zip(request.spans, each, strict=True))
    for (start, stop), weight in learned if turns == "all" else learned[-1:]:
        weights[start:stop] = weight
    return WeightedIds(ids=request.ids, weights=weights * np.float32(example_weight), row=row)
