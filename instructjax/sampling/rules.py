"""How the next token is drawn: the rules, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from instructjax.errors import UsageError

# What logits may be divided by: with less, they overflow.
LEAST = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRules:
    """What is done to logits before a token is drawn, in this order, as transformers does it.

    Attributes:
      repetition_penalty: logits of tokens that the prompt or the response holds already are
        divided by it where positive, else multiplied (Keskar et al. 2019).
      temperature: logits are divided by it; 0 takes the likeliest token (of equals, the lowest id).
      top_k: only the k likeliest are drawn from, and those as likely as the last of them; 0 for
        all.
      top_p: only the likeliest whose probabilities together reach it (Holtzman et al. 2020); a
        token stays if those likelier than it have less. 1 for all.
      min_p: only those at least this share of the likeliest (Nguyen et al. 2024); 0 for all.

    Raises:
      UsageError: a number out of range.

    >>> SamplingRules(temperature=0.7, top_p=0.9).greedy
    False
    """

    repetition_penalty: int | float = 1.0
    temperature: int | float = 1.0
    top_k: int = 0
    top_p: int | float = 1.0
    min_p: int | float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.top_k, Integral) and not isinstance(self.top_k, bool)
        good = {
            "repetition_penalty": _in_range(self.repetition_penalty, LEAST, math.inf),
            "temperature": is_temperature(self.temperature),
            "top_k": whole and self.top_k >= 0,
            "top_p": _in_range(self.top_p, 0.0, 1.0, low=False, high=True),
            "min_p": _in_range(self.min_p, 0.0, 1.0, high=True),
        }
        remedies = {
            "repetition_penalty": f"a number from {LEAST} up, 1 for none",
            "temperature": f"0 (greedy), or a number from {LEAST} up",
            "top_k": "a whole number, 0 for all tokens",
            "top_p": "a number above 0, at most 1",
            "min_p": "a number from 0 to 1",
        }
        for name, fine in good.items():
            if not fine:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}", remedy=f"give {remedies[name]}"
                )

    @property
    def greedy(self) -> bool:
        """Nothing is left to chance."""
        return self.temperature == 0

    def describe(self) -> dict[str, str]:
        """The rules as text by name."""
        names = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
        return {name: str(getattr(self, name)) for name in names}


def is_temperature(value: object) -> bool:
    """0, or large enough to divide logits by."""
    return _in_range(value, LEAST, math.inf) or _in_range(value, 0.0, 0.0, high=True)


def _in_range(
    value: object, least: float, most: float, *, low: bool = True, high: bool = False
) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    value = float(value)
    return (least <= value if low else least < value) and (value <= most if high else value < most)
