"""What a person writes: an instruction c, an input z, and one or several responses y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from instructjax.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row: instruction c, input z and response y, with names to group it by.

    Text and token ids are alternatives: give `output` (and `instruction`, `input`), or
    `prompt_ids` and `output_ids`.

    Attributes:
      instruction: c, the instruction.
      input: z, the user's input.
      output: y, or several y (candidates or references), each scored on its own row.
      id: a name for the row; readers make one from the row's place if it is missing.
      instruction_id, input_id, task, category: names to group by; never used for identity.
      system: a system turn, put before everything else by chat layouts.
      history: earlier turns of the conversation, oldest first: messages, dicts with `role` and
        `content`, or pairs of these.
      answer: the right one among several y, if it is known: its index from 0, or its text.
      prompt_ids: token ids of the whole prompt, used as they are.
      output_ids: token ids of y (or of several y), used as they are: nothing is appended.
      extra: further columns of the data row, where a reader was asked to keep them; no part of
        equality.
      place: file and row that a reader took it from, to name in messages; no part of equality.

    >>> Example(instruction="Add.", input="1 + 1", output=["2", "3"]).outputs
    ('2', '3')
    """

    instruction: str = ""
    input: str = ""
    output: str | Sequence[str] | None = None
    id: str | None = None
    instruction_id: str | None = None
    input_id: str | None = None
    task: str | None = None
    category: str | None = None
    system: str | None = None
    history: Sequence[Message | Mapping[str, str] | tuple[str, str]] = ()
    answer: int | str | None = None
    prompt_ids: Sequence[int] | np.ndarray | None = None
    output_ids: Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    place: tuple[str, str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        try:
            turns = tuple(map(_to_message, self.history))
        except (TypeError, ValueError, KeyError):
            raise DataError(
                "the history is no list of turns",
                row=self.id,
                remedy='give Message(role="user", content=...), or dicts with these two keys',
            ) from None
        object.__setattr__(self, "history", turns)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The history as messages, however it was given."""
        return cast("tuple[Message, ...]", self.history)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every y as text, in order; empty where ids are given instead."""
        if self.output is None:
            return ()
        return (self.output,) if isinstance(self.output, str) else tuple(self.output)

    @property
    def outputs_ids(self) -> tuple[tuple[int, ...], ...]:
        """Every y as token ids, in order; empty where text is given instead."""
        if self.output_ids is None:
            return ()
        several = len(self.output_ids) and hasattr(self.output_ids[0], "__len__")
        lists: Any = self.output_ids if several else [self.output_ids]
        return tuple(tuple(map(int, ids)) for ids in lists)


def _to_message(turn: Message | Mapping[str, str] | Sequence[str]) -> Message:
    if isinstance(turn, Message):
        return turn
    role, content = (turn["role"], turn["content"]) if isinstance(turn, Mapping) else turn
    if role not in get_args(Role) or not isinstance(content, str):
        raise ValueError(role)
    return Message(role=role, content=content)  # type: ignore[arg-type]
