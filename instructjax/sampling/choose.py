"""One of several given responses, drawn by its probability among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from instructjax.data.example import Example
from instructjax.errors import DataError, UsageError
from instructjax.models.model import Model
from instructjax.sampling.responses import key_of
from instructjax.sampling.rules import LEAST, is_temperature
from instructjax.scoring.api import score

_NOT_FINITE = "see whether the model's weights are, or use dtype float32"


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A response drawn from those given.

    Attributes:
      id: the example's, or "row N".
      index: which of its outputs.
      text: that output.
      log_probs: log Pr(y | c, z) of each output, nats.
      posterior: of each among them; sums to 1.
    """

    id: str
    index: int
    text: str
    log_probs: Float64[np.ndarray, " n"]
    posterior: Float64[np.ndarray, " n"]


def choose(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    temperature: int | float = 1.0,
    seed: int = 0,
    layout: str | Path = "user",
    include_eos: bool = True,
) -> list[Choice]:
    r"""Draws one of each example's outputs, with \(\Pr(y \mid c, z, y \in \text{outputs})\).

    This is exact: each output is scored whole, along the tree of their ids, so that what they have
    in common is computed once. Masking the tokens that lead to no output, step by step, would
    favour outputs whose beginnings are likely, whatever follows.

    Args:
      model: from `load_model`.
      examples: each with a list of outputs to choose from.
      temperature: log Pr is divided by it; 0 takes the likeliest (of equals, the first).
      seed: with an example's id it decides the draw.
      layout, include_eos: see `score`.

    Raises:
      UsageError: a temperature that is neither 0 nor at least `LEAST`.
      DataError, PromptError: an example cannot be scored; they name it.
    """
    if not is_temperature(temperature):
        raise UsageError(
            f"temperature is {temperature!r}", remedy=f"give 0, or a number from {LEAST} up"
        )
    examples = [examples] if isinstance(examples, Example) else list(examples)
    scores = score(model, examples, layout=layout, include_eos=include_eos)
    choices, start = [], 0
    for row, example in enumerate(examples):
        count = len(example.outputs or example.outputs_ids)
        logs = scores.log_prob[start : start + count]
        start += count
        name = example.id or f"row {row + 1}"
        if not np.isfinite(logs).all():
            raise DataError("log Pr of a response is not finite", row=name, remedy=_NOT_FINITE)
        weights = np.exp((logs - logs.max()) / (temperature or 1))
        posterior = weights / weights.sum()
        index = int(logs.argmax()) if temperature == 0 else _draw(posterior, seed, name)
        ids = [] if example.outputs else list(example.outputs_ids[index])
        text = example.outputs[index] if example.outputs else model.tokenizer.decode(ids)
        choices.append(Choice(id=name, index=index, text=text, log_probs=logs, posterior=posterior))
    return choices


def _draw(posterior: np.ndarray, seed: int, name: str) -> int:
    high, low = (int(word) for word in key_of(seed, name, 0))
    uniform = ((high << 21) ^ (low >> 11)) / (1 << 53)
    sums = posterior.cumsum()
    return int(np.searchsorted(sums, min(uniform * sums[-1], np.nextafter(sums[-1], 0)), "right"))
