"""Token heat maps: y with what c, z and both do to each of its tokens, to hover or tap over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from instructjax.display.tokens import show_piece

LAYERS = ("log p", "adds: instruction", "adds: input", "only together")
TOKENS = 300
# Nats at which a colour is full.
_FULL = (8.0, 4.0, 4.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class HeatToken:
    """A token of a heat map.

    Attributes:
      text: visible, as text: a page escapes it.
      values: nats, one a layer.
      strengths: of the colour, -1 to 1, one a layer; negative where the model is worse off.
      breaks: whether a line ends after it.
    """

    text: str
    values: tuple[float, ...]
    strengths: tuple[float, ...]
    breaks: bool

    @property
    def title(self) -> str:
        """All values, for a person."""
        return " · ".join(
            f"{name} {value:+.2f}" if k else f"{name} {value:.2f} (p {math.exp(value):.2g})"
            for k, (name, value) in enumerate(zip(LAYERS, self.values, strict=True))
        )


def make_heat_tokens(
    pieces: Sequence[str], layers: Float64[np.ndarray, "4 T"], limit: int = TOKENS
) -> list[HeatToken]:
    """Tokens with their colours; those beyond the limit are left out.

    >>> layers = np.array([[-8.0], [4.0], [-1.0], [0.0]])
    >>> token = make_heat_tokens([" a"], layers)[0]
    >>> token.text, token.strengths
    ('·a', (-1.0, 1.0, -0.25, 0.0))
    """
    return [
        HeatToken(
            text=show_piece(pieces[t][:80]) or "∅",
            values=tuple(round(float(x), 3) for x in layers[:, t]),
            strengths=tuple(
                round(max(-1.0, min(1.0, float(x) / full)), 3)
                for x, full in zip(layers[:, t], _FULL, strict=True)
            ),
            breaks=pieces[t].endswith("\n"),
        )
        for t in range(min(len(pieces), limit))
    ]
