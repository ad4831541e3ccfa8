"""What candidates are compared by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.prompts.options import check_choice

Normalization = Literal["sum", "per_token", "per_character", "per_byte", "pmi", "calibrated"]
PREMISES = ("none", "c", "z")
CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankOptions:
    """What candidates are compared by.

    Attributes:
      normalization: "sum", "per_token", "per_character", "per_byte", "pmi" or "calibrated"; see
        `rank`.
      premise: for "pmi", the prompt that y is compared under: what a context leaves of the
        example's own ("none", "c" or "z"), or an `Example` whose prompt is put in its place.
      content_free: for "calibrated", the texts that are put in the place of z.

    Raises:
      UsageError: a value that is not one of these, or that does not count.

    >>> RankOptions(normalization="pmi", premise="c").describe()
    {'normalization': 'pmi', 'premise': 'c'}
    """

    normalization: Normalization = "sum"
    premise: str | Example = "none"
    content_free: Sequence[str] = CONTENT_FREE

    def __post_init__(self) -> None:
        check_choice("normalization", self.normalization, get_args(Normalization))
        premise = self.premise
        if not isinstance(premise, Example) and premise not in PREMISES:
            raise UsageError(
                f"there is no premise {premise!r}",
                remedy=f"choose one of {', '.join(PREMISES)}, or give an Example(instruction=...)",
            )
        texts: object = self.content_free
        listed = isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) > 0
        if not listed or not all(isinstance(text, str) for text in self.content_free):
            raise UsageError(
                f"content_free is {texts!r}", remedy="give a list of at least one text"
            )

        given = {
            "premise": (premise != "none", "pmi"),
            "content_free": (tuple(self.content_free) != CONTENT_FREE, "calibrated"),
        }
        for name, (chosen, needed) in given.items():
            if chosen and self.normalization != needed:
                raise UsageError(
                    f"{name} does not count for the normalization {self.normalization}",
                    remedy=f"leave it out, or normalize by {needed}",
                )

    def describe(self) -> dict[str, str]:
        """What the scores of a ranking are, for its metadata."""
        about: dict[str, str] = {"normalization": self.normalization}
        if self.normalization == "pmi":
            premise = self.premise
            about["premise"] = premise if isinstance(premise, str) else _describe_prompt(premise)
        if self.normalization == "calibrated":
            about["content_free"] = json.dumps(list(self.content_free), ensure_ascii=False)
        return about


def _describe_prompt(example: Example) -> str:
    names = ("instruction", "input", "system", "prompt_ids")
    values = {name: value for name in names if (value := getattr(example, name)) is not None}
    values["history"] = [[turn.role, turn.content] for turn in example.turns]
    return json.dumps({k: v for k, v in values.items() if len(v)}, ensure_ascii=False, default=list)
