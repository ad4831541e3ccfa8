"""The prompt of one example under one context, as text: what all its candidates share."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from instructjax.errors import PromptError
from instructjax.prompts.boundary import Segment
from instructjax.prompts.layouts import Layout
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.parts import Parts
from instructjax.prompts.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt as text.

    Attributes:
      parts: the texts it is made of.
      segments: the text before y: one segment, or with earlier scored turns between the frames.
      prefix_id: BOS, if the text does not hold it; or what stands for an empty prompt; or None.
      eos_id: the end-of-turn token, or None where it is not scored.
      flags: see `PromptEncoder.encode`.
    """

    parts: Parts
    segments: tuple[Segment, ...]
    prefix_id: int | None
    eos_id: int | None
    flags: tuple[str, ...]

    @property
    def frames(self) -> tuple[str, ...]:
        """The segments that are not scored."""
        return tuple(segment.text for segment in self.segments if not segment.scored)


class PromptBuilder:
    """Makes prompts by the rules of one tokenizer, layout and set of options."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout, options: PromptOptions) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._options = options

    def build(self, parts: Parts) -> Prompt:
        """Renders the layout and settles BOS and end of turn.

        Raises:
          PromptError: the layout refuses the parts, or a token is wanted that the model lacks.
        """
        all_turns = self._options.turns == "all"
        frames = self._layout.frames(parts)
        eos_id = self._layout.end_of_turn(parts) if self._options.include_eos else None
        turns = parts.assistant_turns
        scored = turns if all_turns else ()
        flags = ["special_in_text"] if self.spells_special(parts.texts) else []
        if not all_turns and self._options.uses_chat_template:
            kept = all(turn.strip() in frames[0] for turn in turns)
            flags += [] if kept else ["history_rewritten"]
        segments = [Segment(text=frames[0])]
        for turn, frame in zip(scored, frames[1:], strict=True):
            segments.append(self.response(turn, eos_id, name="an earlier assistant turn"))
            segments.append(Segment(text=frame))
        return Prompt(
            parts=parts,
            segments=tuple(segments),
            prefix_id=self._prefix_id(frames[0]),
            eos_id=eos_id,
            flags=tuple(flags),
        )

    def response(self, text: object, eos_id: int | None, *, name: str) -> Segment:
        """A scored turn. An end-of-turn token that is already written in it is not doubled.

        Raises:
          PromptError: it is empty, or not text.
        """
        if not isinstance(text, str):
            raise PromptError(f"{name} is {type(text).__name__}, not text", remedy="give a string")
        bare = text if eos_id is None else text.removesuffix(self._tokenizer.token_text(eos_id))
        if not bare:
            raise PromptError(f"{name} is empty", remedy="leave the row out, or give a response")
        return Segment(text=bare, scored=True, eos_id=eos_id)

    def spells_special(self, texts: Iterable[str]) -> bool:
        """Whether a text holds the string of a control token."""
        return self._special is not None and any(map(self._special.search, texts))

    @functools.cached_property
    def bos_text(self) -> str:
        """BOS as a string, "" without one."""
        bos_id = self._tokenizer.bos_id
        return "" if bos_id is None else self._tokenizer.token_text(bos_id)

    @functools.cached_property
    def _special(self) -> re.Pattern[str] | None:
        texts = filter(None, map(self._tokenizer.token_text, self._tokenizer.special_ids or ()))
        pattern = "|".join(map(re.escape, sorted(texts)))
        return re.compile(pattern) if pattern else None

    def _prefix_id(self, text: str) -> int | None:
        tokenizer = self._tokenizer
        if not text:
            # Something must stand before y's first token; lm-evaluation-harness takes the same.
            start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            if start is None:
                raise PromptError(
                    f"the prompt is empty, and {tokenizer.name} has neither BOS nor EOS to stand "
                    "for it",
                    remedy="give an instruction or an input",
                )
            return start
        if self._options.uses_chat_template or not tokenizer.adds_bos:
            return None
        return None if text.startswith(self.bos_text) else tokenizer.bos_id
