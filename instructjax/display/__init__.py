"""What a person looks at: coloured tokens, progress."""

from instructjax.display.progress import ScoringProgress
from instructjax.display.tokens import (
    TokenLine,
    color_of,
    render_html,
    render_legend,
    render_legend_html,
    show_piece,
    text_color_on,
)

__all__ = [
    "ScoringProgress",
    "TokenLine",
    "color_of",
    "render_html",
    "render_legend",
    "render_legend_html",
    "show_piece",
    "text_color_on",
]
