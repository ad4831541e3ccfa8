"""One response with its names, and the prompt that an example makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from instructjax.data.example import Example
from instructjax.errors import DataError, PromptError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import PromptOptions, Truncation
from instructjax.prompts.request import Request
from instructjax.sampling.responses import PromptToSample, Sampled
from instructjax.scoring.api import check_max_length
from instructjax.scoring.rows import check_example


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class SampledRow:
    """A response y ~ Pr(. | c, z) to one example, with its names.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      example: what was answered.
      flags: of the prompt; see `PromptEncoder.encode`.
      sampled: ids, text and numbers.
    """

    id: str
    example: Example
    flags: tuple[str, ...]
    sampled: Sampled

    @property
    def sample(self) -> int:
        """Number of the response among those to this example."""
        return self.sampled.sample

    @property
    def text(self) -> str:
        """y without the token or string that ended it."""
        return self.sampled.text

    @property
    def token_ids(self) -> Int32[np.ndarray, " n"]:
        """Ids drawn, the stop token included."""
        return self.sampled.ids

    @property
    def num_tokens(self) -> int:
        """Tokens drawn, the stop token included."""
        return len(self.sampled.ids)

    @property
    def token_log_probs(self) -> Float32[np.ndarray, " n"]:
        """Nats of each token under the model: what `score` gives for these ids, if it was asked."""
        return self.sampled.token_log_probs

    @property
    def sampling_log_probs(self) -> Float32[np.ndarray, " n"]:
        """Nats of each token under the distribution it was drawn from."""
        return self.sampled.sampling_log_probs

    @property
    def log_prob(self) -> float:
        """log Pr(y | c, z) in nats, summed in float64."""
        return float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def sampling_log_prob(self) -> float:
        """Nats under the distribution that y was drawn from, summed in float64."""
        return float(self.sampling_log_probs.sum(dtype=np.float64))

    @property
    def finish_reason(self) -> str:
        """ "stop_token", "stop_string" or "length"."""
        return self.sampled.finish_reason

    @property
    def status(self) -> str:
        """ "ok", or flags joined by commas: of the prompt, and "not_finite" if a number is not."""
        numbers = self.token_log_probs, self.sampling_log_probs
        finite = all(np.isfinite(x).all() for x in numbers)
        return ",".join([*self.flags, *([] if finite else ["not_finite"])]) or "ok"

    def __repr__(self) -> str:
        return (
            f"SampledRow(id={self.id!r}, sample={self.sample}, text={self.text!r}, "
            f"log_prob={self.log_prob:.3f}, finish_reason={self.finish_reason!r})"
        )


def make_prompt_encoder(
    model: Model,
    *,
    max_new_tokens: int,
    truncation: Truncation = "error",
    max_length: int | None = None,
    **options: Any,
) -> PromptEncoder:
    """The encoder of prompts to be answered.

    Args:
      model: whose tokenizer and context length count.
      max_new_tokens: with truncation, prompts are cut so that there is room for so many, but for
        half of all tokens at most.
      truncation: of prompts that are too long: "error", "left" or "middle".
      max_length: tokens of prompt and response; by default all that the model takes, and one
        more, as the last needs no position.
      **options: others of `PromptOptions`.

    Raises:
      UsageError: an unknown option, or a `max_length` that the model does not take.
    """
    given = PromptOptions(
        max_length=max_length, truncation=truncation, include_eos=False, **options
    )
    check_max_length(model, max_length)
    longest = model.config.max_positions + 1 if max_length is None else max_length
    if truncation != "error":
        longest -= min(max_new_tokens, longest // 2) - 1
    return PromptEncoder(
        model.tokenizer,
        replace(given, max_length=max(longest, 2)),
        vocab_size=model.config.vocab_size,
        max_positions=longest if max_length is None else model.config.max_positions,
    )


def encode_prompt(encoder: PromptEncoder, example: Example, row: int) -> Request:
    """A request whose prompt is the example's, and whose response stands in for one to come.

    Raises:
      DataError: there is neither instruction nor input.
      PromptError: the prompt cannot be encoded faithfully.
    """
    check_example(example, row)
    name = example.id or f"row {row + 1}"
    given = example.prompt_ids is not None
    if not given and not (
        example.instruction or example.input or example.system or example.history
    ):
        raise DataError("no instruction and no input", row=name, remedy="give one of them")
    longest = encoder.options.max_length
    if given and longest is not None and len(example.prompt_ids or ()) >= longest:
        raise PromptError(
            f"prompt_ids are {len(example.prompt_ids or ())} tokens, and at most {longest - 1} "
            "leave room for a response",
            row=name,
            remedy="shorten them",
        )
    stand_in = {"output": None, "output_ids": [0]} if given else {"output": "x", "output_ids": None}
    (request,) = encoder.encode(replace(example, answer=None, **stand_in), row=row)
    return request


def name_response(example: Example, request: Request, sampled: Sampled) -> SampledRow:
    """A response to the prompt that an example made."""
    return SampledRow(
        id=example.id or f"row {request.row + 1}",
        example=example,
        flags=tuple(flag for flag in request.flags if flag != "double_space"),
        sampled=sampled,
    )


def to_prompt(
    example: Example, request: Request, *, num_samples: int, max_new_tokens: int
) -> PromptToSample:
    """What the engine takes. The example's id, or else its place, decides about the draws."""
    return PromptToSample(
        ids=request.ids[: request.spans[-1][0]],
        name=example.id or f"row {request.row + 1}",
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
    )
