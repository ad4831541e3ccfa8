"""The choices that turn an example into token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from instructjax.errors import UsageError

Boundary = Literal["exact", "joint"]
Truncation = Literal["error", "left", "middle"]
Turns = Literal["last", "all"]

LAYOUTS = ("user", "system", "plain", "alpaca", "raw")
LAYOUT_SUFFIXES = (".jinja", ".jinja2", ".j2")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOptions:
    """How c, z and y become ids.

    Attributes:
      layout: where c and z go: `user` (one user turn: c, a blank line, z), `system` (c in the
        system turn, z in the user turn), `plain` (c, a blank line, z, a blank line), `alpaca` (the
        prompt of Stanford Alpaca), `raw` (c and z one after the other, nothing added), or the path
        of a Jinja file. The first two use the model's chat template.
      include_eos: whether y ends with the end-of-turn token, which makes Pr(y|c,z) a distribution
        over finite strings.
      boundary: `exact` (prompt and y are encoded each on its own; no token holds parts of both) or
        `joint` (encoded as one string; a token over the join counts in y and is flagged).
      truncation: what happens to a prompt that is too long: `error`, `left` (the oldest words of
        the history, c and z go first) or `middle`. BOS, the frame that the layout writes, the
        system turn and y are never cut. With the boundary `exact`, all candidates of an example
        keep the same prompt, cut to fit the longest of them.
      max_length: the most tokens of prompt and y together, or None for no limit.
      turns: score the `last` assistant turn, which is y, or `all` of them (chat layouts only).

    Raises:
      UsageError: an unknown value.

    >>> PromptOptions(boundary="joint").include_eos
    True
    """

    layout: str | Path = "user"
    include_eos: bool = True
    boundary: Boundary = "exact"
    truncation: Truncation = "error"
    max_length: int | None = None
    turns: Turns = "last"

    def __post_init__(self) -> None:
        for option, kind in (("boundary", Boundary), ("truncation", Truncation), ("turns", Turns)):
            check_choice(option, getattr(self, option), get_args(kind))
        if not isinstance(self.include_eos, bool):
            raise UsageError(f"include_eos is {self.include_eos!r}", remedy="give True or False")
        if not (str(self.layout) in LAYOUTS or str(self.layout).endswith(LAYOUT_SUFFIXES)):
            raise UsageError(
                f"there is no layout {str(self.layout)!r}",
                remedy=f"choose one of {', '.join(LAYOUTS)}, or give the path of a .jinja file",
            )
        length = self.max_length
        if length is not None and (
            isinstance(length, bool) or not isinstance(length, int) or length < 2
        ):
            raise UsageError(
                f"max_length is {length!r}", remedy="give a whole number of tokens, at least 2"
            )
        if self.turns == "all" and not self.uses_chat_template:
            raise UsageError(
                f"turns='all' needs a chat template, and the layout {str(self.layout)!r} uses none",
                remedy="choose the layout user or system",
            )

    @property
    def uses_chat_template(self) -> bool:
        """Whether the layout is one that the model's chat template renders."""
        return str(self.layout) in ("user", "system")


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a UsageError that lists the choices if the value is none of them."""
    if value not in choices:
        raise UsageError(
            f"there is no {option} {value!r}", remedy=f"choose one of {', '.join(choices)}"
        )
