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
from instructjax.prompts.options import Boundary, PromptOptions, Truncation, check_choice
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
        self._encoders: dict[tuple[PromptOptions, bool], PromptEncoder] = {
            (self._plain.options, False): self._plain
        }

    @property
    def max_length(self) -> int:
        """Tokens that are seen at once."""
        return self._plain.options.max_length or self._model.config.max_positions

    def describe(self) -> dict[str, str]:
        """Model, rules, arithmetic and versions, as text by name."""
        about = describe_run(self._model, self._plain, ())
        del about["contexts"]
        return {**about, "rolling_bos": self._rolling_bos}

    def encode_pair(self, context: str, continuation: str, *, row: int, name: str) -> Request:
        """The continuation after its context; an empty context is BOS, or EOS without one.

        Args:
          context, continuation: as the harness gives them.
          row: index in the input.
          name: what to call the request in a message.

        Raises:
          PromptError: they cannot be encoded faithfully, or are too long.
        """
        return self._encode(context, continuation, row, name, self._plain.options)

    def encode_context(self, context: str, *, row: int, name: str, room: int) -> Request:
        """A context to be answered, with one token that stands in for the response.

        Args:
          context: as the harness gives it; what comes after it does not change its ids.
          row: index in the input.
          name: what to call the request in a message.
          room: tokens to leave for the response, where contexts are cut.

        Raises:
          PromptError: it cannot be encoded faithfully, or is too long.
        """
        options = replace(self._plain.options, boundary="exact")
        if options.truncation != "error":
            options = replace(options, max_length=max(self.max_length - room + 1, 2))
        return self._encode(context, "x", row, name, options)

    def _encode(
        self, context: str, continuation: str, row: int, name: str, options: PromptOptions
    ) -> Request:
        chat = bool(self._openings) and context.startswith(self._openings)
        encoder = self._encoder(options, chat=chat)
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

    def _encoder(self, options: PromptOptions, *, chat: bool) -> PromptEncoder:
        """Of strings that the chat template wrote, it decides about BOS, as in `score`."""
        if (options, chat) not in self._encoders:
            tokenizer = self._model.tokenizer
            self._encoders[options, chat] = PromptEncoder(
                replace(tokenizer, adds_bos=False) if chat else tokenizer,
                options,
                vocab_size=self._model.config.vocab_size,
            )
        return self._encoders[options, chat]

    @cached_property
    def _openings(self) -> tuple[str, ...]:
        tokenizer = self._model.tokenizer
        return find_openings(tokenizer) if tokenizer.adds_bos else ()
