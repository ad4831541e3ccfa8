"""Tokens coloured by their log-probability, in a terminal and in a notebook.

One scale for both: from pale (the model expected the token) to dark (it did not), with lightness
that falls all the way, so that it reads without colour vision and in print. Every token brings its
own background and the text colour that stands out more on it, whatever the theme.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

LOWEST = -8.0
HTML_TOKENS = 400
_HTML_FONT = "font-family:monospace;line-height:1.6;overflow-wrap:anywhere"

# The colour map "magma" of matplotlib from light to dark, in nine steps.
_STOPS = ("fcfdbf", "feca8d", "fd9668", "f1605d", "cd4071", "9e2f7f", "721f81", "440f76", "180f3d")
_RGB = [tuple(int(stop[i : i + 2], 16) for i in (0, 2, 4)) for stop in _STOPS]

_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def color_of(log_prob: float) -> str:
    """The background of a token, "#rrggbb", for a log-probability of 0 down to -8 nats.

    >>> color_of(0.0), color_of(-8.0), color_of(-100.0)
    ('#fcfdbf', '#180f3d', '#180f3d')
    """
    share = 1.0 if math.isnan(log_prob) else min(max(log_prob / LOWEST, 0.0), 1.0)
    place = share * (len(_RGB) - 1)
    k = min(int(place), len(_RGB) - 2)
    mixed = (round(a + (b - a) * (place - k)) for a, b in zip(_RGB[k], _RGB[k + 1], strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def text_color_on(background: str) -> str:
    """Black or white, whichever has more contrast with a background (WCAG 2 luminance).

    >>> text_color_on("#fcfdbf"), text_color_on("#180f3d")
    ('#000000', '#ffffff')
    """
    channels = (int(background[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels)
    luminance = sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def show_piece(piece: str) -> str:
    r"""A token as one visible line: spaces and line ends as marks, control characters escaped.

    A terminal never sees a control sequence that a response holds.

    >>> show_piece(" a\n\x1b[2J"), show_piece("\u202e")
    ('·a↵\\x1b[2J', '\\u202e')
    """
    return "".join(
        _VISIBLE.get(c) or (_escape(c) if unicodedata.category(c) in _HIDDEN_CATEGORIES else c)
        for c in piece
    )


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class TokenLine:
    """Tokens with their log-probabilities under them, wrapped to the width of the terminal.

    Args:
      pieces: the tokens as text.
      log_probs: nats, one a token.
    """

    def __init__(
        self, pieces: Sequence[str], log_probs: Float[np.ndarray, " n"] | Sequence[float]
    ) -> None:
        self.cells = [
            (show_piece(piece), float(log_prob))
            for piece, log_prob in zip(pieces, log_probs, strict=True)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self._wrap(options.max_width):
            for text, log_prob, width in line:
                background = color_of(log_prob)
                style = Style(color=text_color_on(background), bgcolor=background)
                yield Segment(f" {text}{' ' * (width - cell_len(text) - 2)} ", style)
                yield Segment(" ")
            yield Segment.line()
            for _, log_prob, width in line:
                yield Segment(_format(log_prob).rjust(width - 1) + "  ", Style(dim=True))
            yield Segment.line()

    def _wrap(self, max_width: int) -> Iterator[list[tuple[str, float, int]]]:
        line: list[tuple[str, float, int]] = []
        used = 0
        for text, log_prob in self.cells:
            text = _cut(text, max_width - 3)
            width = max(cell_len(text), len(_format(log_prob))) + 2
            if line and used + width > max_width:
                yield line
                line, used = [], 0
            line.append((text, log_prob, width))
            used += width + 1
        if line:
            yield line


def _format(log_prob: float) -> str:
    return f"{round(log_prob, 2) + 0.0:.2f}"  # not "-0.00"


def _cut(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[:-1]
    return text + "…"


def render_legend(*, colored: bool = True) -> Text:
    """The scale in one line for a terminal; without colours, what the numbers are."""
    if not colored:
        return Text("under each token: log p, nats")
    legend = Text("log p of each token, nats:  0 ")
    for k in range(17):
        legend.append(" ", style=f"on {color_of(LOWEST * k / 16)}")
    return legend.append(f" {LOWEST:.0f} or less")


def render_html(
    pieces: Sequence[str],
    log_probs: Float[np.ndarray, " n"] | Sequence[float],
    ranks: Int[np.ndarray, " n"] | Sequence[int] | None = None,
    *,
    limit: int = HTML_TOKENS,
) -> str:
    """Coloured tokens as HTML; the pointer shows log-probability, probability and rank.

    Args:
      pieces: the tokens as text; escaped here.
      log_probs: nats, one a token.
      ranks: 1 + how many tokens the model likes better.
      limit: tokens shown; a note says how many more there are.
    """
    parts = []
    shown = min(len(pieces), limit)
    for k in range(shown):
        log_prob = float(log_probs[k])
        title = f"log-prob {log_prob:.3f} · probability {math.exp(log_prob):.3g}"
        if ranks is not None:
            title += f" · rank {int(ranks[k])}"
        background = color_of(log_prob)
        text = html.escape(show_piece(pieces[k])) or "∅"
        parts.append(
            f'<span style="background:{background};color:{text_color_on(background)};'
            f'padding:0 0.15em;margin-right:1px" title="{title}">{text}</span>'
        )
        parts.append("<br>" if pieces[k].endswith("\n") else "<wbr>")
    if shown < len(pieces):
        parts.append(f"<i>… and {len(pieces) - shown} more tokens</i>")
    return f'<div style="{_HTML_FONT}">{"".join(parts)}</div>'


def render_legend_html() -> str:
    """The scale in one line of HTML."""
    steps = "".join(
        f'<span style="background:{color_of(LOWEST * k / 16)};padding:0 0.25em">&nbsp;</span>'
        for k in range(17)
    )
    return (
        '<div style="font-size:85%">log p of each token, nats: 0 '
        f"{steps} {LOWEST:.0f} or less</div>"
    )
