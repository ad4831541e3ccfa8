"""One scored row with its names, and the requests that an example makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from instructjax.data.example import Example
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.parts import CONTEXTS
from instructjax.prompts.request import Request
from instructjax.scoring.engine import ScoredRequest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ScoredRow:
    """log Pr(y | c, z) of one example, one candidate y and one context, with its names.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      instruction_id, input_id, task: the example's.
      scored: ids and arrays, a value a scored token.
    """

    id: str
    instruction_id: str | None
    input_id: str | None
    task: str | None
    scored: ScoredRequest

    @property
    def candidate(self) -> int:
        """Index of y among the example's outputs."""
        return self.scored.request.candidate

    @property
    def context(self) -> str:
        """What the prompt holds: "cz", "c", "z" or "none"."""
        return self.scored.request.context

    @property
    def log_prob(self) -> float:
        """log Pr(y | c, z) in nats."""
        return self.scored.log_prob

    @property
    def num_tokens(self) -> int:
        """Scored tokens, the end-of-turn token included where it is scored."""
        return self.scored.request.num_tokens

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of y; the end-of-turn token has none."""
        return self.scored.request.num_bytes

    @property
    def log_prob_per_token(self) -> float:
        """Nats a token."""
        return self.log_prob / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """-log Pr / (ln 2 x bytes of y), NaN where y has no bytes.

        The end-of-turn token's nats count although it has no bytes.
        """
        return -self.log_prob / (math.log(2) * self.num_bytes) if self.num_bytes else math.nan

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding gives y: every token is the likeliest."""
        return bool(self.scored.greedy.all())

    @property
    def token_ids(self) -> Int32[np.ndarray, " n"]:
        """Ids of the scored tokens, in order."""
        return self.scored.request.target_ids

    @property
    def token_log_probs(self) -> Float32[np.ndarray, " n"]:
        """Nats of each scored token, in order."""
        return self.scored.token_log_probs

    @property
    def status(self) -> str:
        """ "ok", or what a reader of the number must know, joined by commas.

        The flags of `PromptEncoder.encode`, and "not_finite" where the model gave no number.
        """
        flags = self.scored.request.flags
        if not math.isfinite(self.log_prob):
            flags = (*flags, "not_finite")
        return ",".join(flags) or "ok"

    def __repr__(self) -> str:
        return (
            f"ScoredRow(id={self.id!r}, candidate={self.candidate}, context={self.context!r}, "
            f"log_prob={self.log_prob:.3f}, num_tokens={self.num_tokens}, status={self.status!r})"
        )


def parse_contexts(contexts: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the contexts asked for, in order.

    Raises:
      UsageError: there is none, an unknown one, or one twice.

    >>> parse_contexts("cz, none")
    ('cz', 'none')
    """
    names = contexts.split(",") if isinstance(contexts, str) else contexts
    found = tuple(str(name).strip() for name in names)
    unknown = [name for name in found if name not in CONTEXTS]
    if not found or unknown or len(set(found)) < len(found):
        wrong = f"unknown context {unknown[0]!r}" if unknown else f"contexts {','.join(found)!r}"
        raise UsageError(wrong, remedy=f"give one or several of {', '.join(CONTEXTS)}, each once")
    return found


def list_examples(examples: object, name: str = "examples") -> Iterable[Any]:
    """One example as a tuple of it, several as they are, to go through once.

    Raises:
      UsageError: it is neither an `Example` nor an iterable of things that may be some.

    >>> len(list_examples(Example(instruction="Add.", output="2")))
    1
    """
    if isinstance(examples, Example):
        return (examples,)
    if isinstance(examples, Mapping | str | bytes) or not isinstance(examples, Iterable):
        raise UsageError(
            f"{name} are of type {type(examples).__name__}",
            remedy="give an Example(instruction=..., input=..., output=...) or a list of them",
        )
    return examples


def check_example(example: object, row: int) -> Example:
    """Returns the example, or raises a UsageError if it is none."""
    if not isinstance(example, Example):
        raise UsageError(
            f"row {row + 1} is of type {type(example).__name__}, not an Example",
            remedy="make Example(instruction=..., input=..., output=...) of it",
        )
    return example


def encode_row(
    model: Model, encoder: PromptEncoder, example: Example, row: int, contexts: Sequence[str]
) -> list[Request]:
    """Requests for every candidate under every context: candidates outside, contexts inside.

    Raises:
      DataError: the example has no response, or neither instruction nor input.
      PromptError: it cannot be encoded faithfully under one of the contexts.
    """
    name = example.id or f"row {row + 1}"
    if not example.outputs and example.output_ids is None:
        raise DataError("there is no response", row=name, remedy="give `output`")
    if not (example.instruction or example.input or example.system or example.history) and (
        example.prompt_ids is None
    ):
        raise DataError(
            "no instruction and no input",
            row=name,
            remedy="give one of them; the context none drops them for comparison",
        )
    made = [encoder.encode(example, row=row, context=context) for context in contexts]
    requests = [request for candidate in zip(*made, strict=True) for request in candidate]
    for request in requests:
        if (greatest := int(request.ids.max())) >= model.config.vocab_size:
            raise PromptError(
                f"the text holds token {greatest} ({encoder.tokenizer.token_text(greatest)!r}), "
                f"and the model has an embedding for {model.config.vocab_size} only",
                row=name,
                remedy="leave that token out of the text",
            )
    return requests
