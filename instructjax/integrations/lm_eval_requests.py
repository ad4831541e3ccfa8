"""Strings of lm-evaluation-harness as requests: none of them changed, one BOS before each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Literal

from instructjax.data.example import Example
from instructjax.integrations.conversations import find_openings
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import Boundary, Truncation, check_choice
from instructjax.prompts.request import Request
from instructjax.scoring.api import make_encoder
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.windows import cut_document


class RequestEncoder:
    """Turns pairs of strings and whole texts into requests, by the rules of one model.

    Args:
      model: whose tokenizer and context length count.
      boundary: "exact" (context and continuation are encoded each on its own) or "joint".
      truncation: of contexts that are too long: "error", "left" or "middle".
      max_length: tokens of context and continuation together, and of a window; by default all
        that the model takes.
      rolling_bos: which windows begin with BOS: "every" or "first".

    Raises:
      UsageError: an unknown option, or a `max_length` that the model does not take.
    """

    def __init__(
        self,
        model: Model,
        *,
        boundary: Boundary,
        truncation: Truncation,
        max_length: int | None,
        rolling_bos: Literal["every", "first"],
    ) -> None:
        check_choice("rolling_bos", rolling_bos, ("every", "first"))
        self._model = model
        self._rolling_bos: Literal["every", "first"] = rolling_bos
        self._plain = make_encoder(
            model,
            layout="raw",
            include_eos=False,
            boundary=boundary,
            truncation=truncation,
            max_length=max_length,
        )

    @property
    def max_length(self) -> int:
        """Tokens that are seen at once."""
        return self._plain.options.max_length or self._model.config.max_positions

    def describe(self) -> dict[str, str]:
        """Model, rules, arithmetic and versions, as text by name."""
        about = describe_run(self._model, self._plain, ())
        del about["contexts"]
        return {**about, "rolling_bos": self._rolling_bos}

    def encode_pair(
        self, context: str, continuation: str, *, row: int, name: str, room: int = 0
    ) -> Request:
        """The continuation after its context; an empty context is BOS, or EOS without one.

        Args:
          context, continuation: as the harness gives them.
          row: index in the input.
          name: what to call the request in a message.
          room: tokens to leave free after them, where contexts are cut.

        Raises:
          PromptError: they cannot be encoded faithfully, or are too long.
        """
        chat = bool(self._openings) and context.startswith(self._openings)
        encoder = self._chat if chat else self._plain
        if room and encoder.options.truncation != "error":
            limit = max(self.max_length - room, 2)
            encoder = PromptEncoder(
                encoder.tokenizer,
                replace(encoder.options, max_length=limit),
                vocab_size=self._model.config.vocab_size,
            )
        example = Example(instruction=context, output=continuation, id=name)
        request = encoder.encode(example, row=row)[0]
        tokenizer = self._model.tokenizer
        bos_id = tokenizer.bos_id
        if (
            bos_id is not None
            and context.startswith(tokenizer.token_text(bos_id))
            and request.ids[0] != bos_id
        ):
            # The context spells BOS and lost its beginning: the oldest token that is left makes
            # room for it.
            ids = request.ids.copy()
            ids[0] = bos_id
            request = replace(request, ids=ids)
        return request

    def encode_text(self, text: str, *, row: int, name: str) -> Iterator[Request]:
        """A whole text in as many windows as it needs; see `cut_document`.

        Raises:
          DataError: it is empty.
          PromptError: it cannot be encoded faithfully.
        """
        return cut_document(
            self._model,
            text,
            max_length=self.max_length,
            bos=self._rolling_bos,
            name=name,
            row=row,
        )

    @cached_property
    def _chat(self) -> PromptEncoder:
        """For strings that the chat template wrote: it decides about BOS, as in `score`."""
        return PromptEncoder(
            replace(self._model.tokenizer, adds_bos=False),
            self._plain.options,
            vocab_size=self._model.config.vocab_size,
        )

    @cached_property
    def _openings(self) -> tuple[str, ...]:
        tokenizer = self._model.tokenizer
        return find_openings(tokenizer) if tokenizer.adds_bos else ()
