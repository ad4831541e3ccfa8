"""The one place where an evaluation asks a model to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.evaluation.written import Written, to_written
from instructjax.models.model import Model
from instructjax.prompts.options import Truncation
from instructjax.sampling.engine import Sampler
from instructjax.sampling.rows import (
    encode_prompt,
    make_prompt_encoder,
    name_response,
    to_prompt,
)
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.stops import list_stops


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How a model writes: greedily, to its end of turn or a limit.

    Attributes:
      max_new_tokens: after so many tokens the text is cut.
      stop: texts before which the response ends; a single one may be given as it is.
      layout, truncation, max_length: of the prompt, as in `score`.
    """

    max_new_tokens: int = 128
    stop: Sequence[str] = ()
    layout: str = "user"
    truncation: Truncation = "error"
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise UsageError(
                f"max_new_tokens is {self.max_new_tokens!r}", remedy="give a whole number from 1"
            )
        object.__setattr__(self, "stop", list_stops(self.stop))

    def describe(self) -> dict[str, str]:
        """What predictions depend on beside model and prompt."""
        return {
            "max_new_tokens": str(self.max_new_tokens),
            "stop": ", ".join(map(repr, self.stop)) or "none",
            "decoding": "greedy",
        }


def generate(
    model: Model,
    rows: Sequence[tuple[int, Example]],
    options: GenerateOptions,
    *,
    on_tokens: Callable[[int], None] | None = None,
    on_row: Callable[[], None] | None = None,
) -> list[Written]:
    """What the model writes for each example, greedily.

    Args:
      rows: examples with their indices in the data.
      on_tokens: called with the number of tokens written since the last call.
      on_row: called when a response is complete.

    Raises:
      DataError, PromptError: a prompt cannot be encoded or has no room for a response; nothing was
        written then.
    """
    encoder = make_prompt_encoder(
        model,
        max_new_tokens=options.max_new_tokens,
        layout=options.layout,
        truncation=options.truncation,
        max_length=options.max_length,
    )
    sampler = Sampler(
        model,
        rules=SamplingRules(temperature=0),
        stop=options.stop,
        max_length=options.max_length,
    )
    requests = [encode_prompt(encoder, example, row) for row, example in rows]
    prompts = [
        to_prompt(example, request, num_samples=1, max_new_tokens=options.max_new_tokens)
        for (_, example), request in zip(rows, requests, strict=True)
    ]
    written: dict[int, Written] = {}
    for sampled in sampler.sample(prompts, on_tokens=on_tokens):
        place = sampled.prompt
        row = name_response(rows[place][1], requests[place], sampled)
        written[place] = to_written(row)
        if on_row is not None:
            on_row()
    return [written[place] for place in range(len(rows))]
