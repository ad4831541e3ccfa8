"""The texts of an example that a prompt is made of, and stand-ins to find them again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from instructjax.data.example import Example, Message
from instructjax.errors import PromptError
from instructjax.prompts.options import check_choice

Context = Literal["cz", "c", "z", "none"]
CONTEXTS: tuple[Context, ...] = ("cz", "c", "z", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """c, z and what goes before them, after an ablation context has been applied."""

    instruction: str
    input: str
    system: str = ""
    history: tuple[Message, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text a person wrote, in the order of the conversation."""
        turns = (message.content for message in self.history)
        return (self.system, *turns, self.instruction, self.input)

    @property
    def assistant_turns(self) -> tuple[str, ...]:
        """What the assistant said in the history."""
        return tuple(turn.content for turn in self.history if turn.role == "assistant")


def select_parts(example: Example, context: str) -> Parts:
    """What of an example a context lets into the prompt; system and history always stay.

    Args:
      example: the row.
      context: "cz" (all), "c" (z is dropped), "z" (c is dropped) or "none" (both are dropped).

    Raises:
      UsageError: an unknown context.
      PromptError: something else than text.

    >>> select_parts(Example(instruction="Add.", input="1 + 1"), "z").texts
    ('', '', '1 + 1')
    """
    check_choice("context", context, CONTEXTS)
    turns = (turn.content for turn in example.turns)
    for text in (example.instruction, example.input, example.system or "", *turns):
        if not isinstance(text, str):
            raise PromptError(
                f"{type(text).__name__} stands where text is expected", remedy="give strings"
            )
    return Parts(
        instruction=example.instruction if context in ("cz", "c") else "",
        input=example.input if context in ("cz", "z") else "",
        system=example.system or "",
        history=example.turns,
    )


def join_paragraphs(*texts: str) -> str:
    """The texts that are not empty, a blank line between them.

    >>> join_paragraphs("Add.", "", "1 + 1")
    'Add.\\n\\n1 + 1'
    """
    return "\n\n".join(text for text in texts if text)


class Stands:
    """Short strings to stand for contents in a rendered template, found in none of the texts.

    >>> stands = Stands(["some text"])
    >>> stands.split(f"<user>{stands[0]}<end>{stands[1]}")
    (['<user>', '<end>', ''], [0, 1])
    """

    def __init__(self, texts: Iterable[str]) -> None:
        whole = "\0".join(texts)
        number = 0
        while f"stand{number}in" in whole:
            number += 1
        self._stem = f"stand{number}in"
        self._pattern = re.compile(rf"{self._stem}(\d+)x")

    def __getitem__(self, index: int) -> str:
        return f"{self._stem}{index}x"

    def split(self, text: str) -> tuple[list[str], list[int]]:
        """What is between the stand-ins of a text, and which stand-ins there are, in order."""
        pieces = self._pattern.split(text)
        return pieces[::2], [int(index) for index in pieces[1::2]]


def stand_for_contents(parts: Parts, stands: Stands) -> tuple[Parts, tuple[str, ...]]:
    """Puts a stand-in for every text that may be cut: the history's turns, c and z.

    Args:
      parts: the texts.
      stands: where the stand-ins come from.

    Returns:
      The parts with stand-ins, and the contents in order: stand-in k stands for content k.
    """
    contents: list[str] = []

    def stand(text: str) -> str:
        if not text:
            return text
        contents.append(text)
        return stands[len(contents) - 1]

    history = tuple(
        turn if turn.role == "system" else replace(turn, content=stand(turn.content))
        for turn in parts.history
    )
    marked = replace(
        parts, history=history, instruction=stand(parts.instruction), input=stand(parts.input)
    )
    return marked, tuple(contents)
