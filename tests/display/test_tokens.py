"""Coloured tokens: one scale, legible everywhere, and no way out of it for what a text holds."""

from __future__ import annotations

import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from instructjax.display import (
    TokenLine,
    color_of,
    render_html,
    render_legend,
    render_legend_html,
    show_piece,
    text_color_on,
)


def luminance(color: str) -> float:
    """Relative luminance as in the text of WCAG 2.2, written out."""
    total = 0.0
    for weight, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)):
        c = int(color[i : i + 2], 16) / 255
        total += weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return total


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_on_every_colour_of_the_scale() -> None:
    for k in range(801):
        background = color_of(-k / 100)
        assert contrast(background, text_color_on(background)) >= 4.5


def test_the_scale_darkens_all_the_way() -> None:
    values = [luminance(color_of(-k / 10)) for k in range(81)]
    assert all(a > b for a, b in zip(values, values[1:], strict=False))
    assert values[0] > 0.8 and values[-1] < 0.02


def test_beyond_the_scale() -> None:
    assert color_of(-50.0) == color_of(-8.0) == color_of(-math.inf) == color_of(math.nan)
    assert color_of(1e-7) == color_of(0.0)


def draw(pieces: list[str], log_probs: list[float], width: int = 40, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    console.print(TokenLine(pieces, log_probs))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_numbers_stand_under_their_tokens() -> None:
    first, second = draw(["Hi", " there", "\n"], [-0.5, -12.25, 0.0]).rstrip("\n").split("\n")
    assert first.split() == ["Hi", "·there", "↵"]
    assert second.split() == ["-0.50", "-12.25", "0.00"]
    # A cell is as wide as the wider of both, with a column on each side and one between cells.
    assert first.index("·there") == second.index("-12.25") == 1 + len("-0.50") + 1 + 1 + 1


def test_lines_fit_the_terminal_in_any_script() -> None:
    pieces = ["word"] * 7 + ["世界世界"] * 5 + ["x" * 90, "世" * 60]
    for width in (20, 33, 80):
        lines = draw(pieces, [-1.0] * len(pieces), width).rstrip("\n").split("\n")
        assert all(cell_len(line) <= width for line in lines)
        assert "".join(lines).count("word") == 7


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = draw(["a"], [-8.0], force_terminal=True, color_system="truecolor")
    assert "48;2;24;15;61" in coloured and "38;2;255;255;255" in coloured
    assert "\x1b" not in draw(["a"], [-8.0])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2" not in draw(["a"], [-8.0], force_terminal=True, color_system="truecolor")
    assert render_legend(colored=False).plain == "under each token: log p, nats"
    assert "-8 or less" in render_legend().plain


@given(st.text(max_size=30))
def test_nothing_in_a_token_steers_a_terminal(piece: str) -> None:
    shown = show_piece(piece)
    assert all(c.isprintable() for c in shown.replace("\xa0", "").replace("\u3000", "")) or (
        not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", shown)
    )
    assert "\n" not in shown and "\x1b" not in shown and " " not in shown


@given(st.text(max_size=30))
def test_nothing_in_a_token_is_markup(piece: str) -> None:
    markup = render_html([piece], [-1.0], [3])
    body = re.sub(r"</?(div|span|br|wbr)[^<>]*>", "", markup)
    assert "<" not in body and ">" not in body


def test_html_of_a_token() -> None:
    markup = render_html(["a<b", "\n"], [-math.log(4), -8.0], [2, 90])
    assert 'title="log-prob -1.386 · probability 0.25 · rank 2">a&lt;b</span>' in markup
    assert "background:#180f3d;color:#ffffff" in markup
    assert "↵</span><br>" in markup
    assert "rank" not in render_html(["a"], [-1.0])
    assert "… and 2 more tokens" in render_html(["a"] * 5, [-1.0] * 5, limit=3)
    assert render_html(["x"], [-1.0]).count("more tokens") == 0
    assert color_of(-8.0) in render_legend_html()
