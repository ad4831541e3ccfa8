"""Examples in, scored rows out: a stream from the first file to the last number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from instructjax.batching.packing import input_length
from instructjax.data.example import Example
from instructjax.errors import DataError, InstructJaxError, PromptError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.parts import CONTEXTS
from instructjax.prompts.request import Request
from instructjax.scoring.engine import ScoredRequest, Work, score_requests

OnError = Callable[[Example, InstructJaxError], None]


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


@dataclass(kw_only=True)
class Intake:
    """What has been read and encoded so far.

    Attributes:
      rows: examples taken from the input, those with errors included.
      tokens: positions that the requests made of them need.
    """

    rows: int = 0
    tokens: int = 0

    def count_done(self, work: Work) -> int:
        """Rows done, told from the tokens computed: rows are not computed in their order."""
        return round(self.rows * work.useful / self.tokens) if self.tokens else self.rows


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


def score_rows(
    model: Model,
    examples: Iterable[Example],
    *,
    encoder: PromptEncoder,
    contexts: Sequence[str] = ("cz",),
    top_k: int = 0,
    on_error: OnError | None = None,
    intake: Intake | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[ScoredRow]:
    """Scores a stream of examples in memory that does not grow with it.

    Rows come in the order of the input: by example, within it by candidate, within that by
    context. An example that cannot be encoded under one of the contexts has no row at all.

    Args:
      model: who scores.
      examples: any iterable.
      encoder: the rules by which prompts are made.
      contexts: which of c and z the prompts hold.
      top_k: how many best alternatives to keep a token.
      on_error: called with each example that cannot be scored and the reason; without it the
        first such example raises.
      intake, work: count what is read and what is computed, if given.
      on_progress: called now and then while the model works.

    Raises:
      DataError, PromptError: an example cannot be scored, and there is no `on_error`.
    """
    intake = Intake() if intake is None else intake
    waiting: deque[tuple[int, tuple[str, str | None, str | None, str | None]]] = deque()

    def encode() -> Iterator[Request]:
        for row, example in enumerate(examples):
            intake.rows += 1
            if not isinstance(example, Example):
                raise UsageError(
                    f"row {row + 1} is of type {type(example).__name__}, not an Example",
                    remedy="make Example(instruction=..., input=..., output=...) of it",
                )
            try:
                requests = encode_row(model, encoder, example, row, contexts)
            except (DataError, PromptError) as error:
                if on_error is None:
                    raise
                on_error(example, error)
                continue
            intake.tokens += sum(map(input_length, requests))
            name = example.id or f"row {row + 1}"
            waiting.append((row, (name, example.instruction_id, example.input_id, example.task)))
            yield from requests

    def tick(_: int) -> None:
        if on_progress is not None:
            on_progress()

    for scored in score_requests(model, encode(), top_k=top_k, work=work, on_row=tick):
        while waiting[0][0] < scored.request.row:
            waiting.popleft()
        name, instruction_id, input_id, task = waiting[0][1]
        yield ScoredRow(
            id=name,
            instruction_id=instruction_id,
            input_id=input_id,
            task=task,
            scored=scored,
        )
