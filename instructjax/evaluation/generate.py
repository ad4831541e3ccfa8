"""The one place where an evaluation asks a model to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import Truncation


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How a model writes: greedily, to its end of turn or a limit.

    Attributes:
      max_new_tokens: after so many tokens the text is cut.
      stop: texts before which the response ends.
      layout, truncation, max_length: of the prompt, as in `score`.
    """

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    layout: str = "user"
    truncation: Truncation = "error"
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise UsageError(
                f"max_new_tokens is {self.max_new_tokens!r}", remedy="give a whole number from 1"
            )

    def describe(self) -> dict[str, str]:
        """What predictions depend on beside model and prompt."""
        return {
            "max_new_tokens": str(self.max_new_tokens),
            "stop": ", ".join(map(repr, self.stop)) or "none",
            "decoding": "greedy",
        }


def generate(model: Model, examples: Sequence[Example], options: GenerateOptions) -> list[str]:
    """What the model writes for each example, greedily.

    Raises:
      PromptError: a prompt cannot be encoded.
    """
    from instructjax.sampling import sample

    samples = sample(
        model,
        list(examples),
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        temperature=0.0,
        layout=options.layout,
        truncation=options.truncation,
        max_length=options.max_length,
        score=False,
        progress=False,
    )
    return [row.text for row in samples]
