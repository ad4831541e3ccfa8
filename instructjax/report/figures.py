"""Figures for a paper or a talk: grid, gaps, wording and variance, as SVG and PNG."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructjax.errors import UsageError
from instructjax.report.texts import shorten

if TYPE_CHECKING:
    from instructjax.report.page import Page
    from instructjax.report.sections import TrackItem

# Of Okabe and Ito (2008): told apart without colour vision too.
_ACCENT, _COLORS = "#0072B2", {"t": "#E69F00", "c": "#0072B2", "z": "#009E73", "cz": "#CC79A7"}


def check_matplotlib() -> Any:
    """The module matplotlib.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "matplotlib is not installed", remedy='run `pip install "instructjax[report]"`'
        ) from None
    return matplotlib


def save_figures(page: Page, folder: Path) -> list[Path]:
    """Draws what there is to draw into a folder, each figure as .svg and .png.

    Texts of the data are drawn as they are: matplotlib's mathematics is switched off in them.

    Raises:
      UsageError: matplotlib is not installed.
    """
    matplotlib = check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, tuple[tuple[float, float], Callable[[Any], None]]] = {
        "grid": ((4.6, 3.4), lambda axes: _draw_grid(axes, page)),
        "gaps": ((5.2, 2.4), lambda axes: _draw_gaps(axes, page)),
    }
    if page.wording is not None:
        tracks = page.wording.tracks
        size = (5.2, 0.9 + 0.32 * len(tracks))
        drawings["wording"] = (size, lambda axes: _draw_tracks(axes, tracks, page.metric))
    if page.variance is not None:
        drawings["variance"] = ((5.2, 1.5), lambda axes: _draw_variance(axes, page))
    written = []
    style = {"font.size": 9, "svg.hashsalt": "instructjax", "svg.fonttype": "none"}
    with matplotlib.rc_context({**style, "text.parse_math": False, "axes.unicode_minus": True}):
        for name, (size, draw) in drawings.items():
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure.add_subplot())
            for kind in ("svg", "png"):
                path = folder / f"{name}.{kind}"
                part = path.with_name(f".{path.name}.part")
                # Without a date, the same page draws the same bytes.
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(part, format=kind, dpi=200, metadata=metadata)
                os.replace(part, path)
                written.append(path)
    return written


def _draw_grid(axes: Any, page: Page) -> None:
    for k, cell in enumerate(page.cells):
        row, column = divmod(k, 2)
        alpha = cell.share / 100 * 1.6 if cell.rows else 0.0
        axes.add_patch(
            _rectangle((column, 1 - row), alpha, dashed=not cell.rows),
        )
        left = f", {cell.missing:,} missing" if cell.missing else ""
        text = f"m{k} {cell.what}\n" + (
            f"{cell.range}\n{cell.rows:,} scores{left}" if cell.rows else f"no scores{left}"
        )
        axes.text(column + 0.5, 1.5 - row + 0.12, cell.mean, ha="center", va="center", size=15)
        axes.text(column + 0.5, 1.5 - row - 0.2, text, ha="center", va="center", size=8)
    axes.set(xlim=(0, 2), ylim=(0, 2))
    axes.set_xticks([0.5, 1.5], ["seen inputs z", "unseen inputs z"])
    axes.set_yticks([1.5, 0.5], ["seen\ninstructions c", "unseen\ninstructions c"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _rectangle(place: tuple[int, int], alpha: float, *, dashed: bool) -> Any:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    return FancyBboxPatch(
        (x + 0.05, y + 0.05),
        0.9,
        0.9,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=to_rgba(_ACCENT, alpha),
        edgecolor="#888888",
        linewidth=0.6,
        linestyle="--" if dashed else "-",
    )


def _draw_gaps(axes: Any, page: Page) -> None:
    _draw_tracks(axes, page.gaps, f"gap in {page.metric}; dashed: the smallest that matters")
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.axvline(page.smallest_gap, color="#666666", linewidth=0.8, linestyle="--")


def _draw_tracks(axes: Any, items: list[TrackItem], name: str) -> None:
    for y, item in enumerate(reversed(items)):
        axes.plot([item.low, item.high], [y, y], color=_ACCENT, linewidth=1.6)
        axes.plot([item.value], [y], "o", color=_ACCENT, markersize=5)
    axes.set_yticks(range(len(items)), [shorten(item.label, 36) for item in reversed(items)])
    axes.set(ylim=(-0.6, len(items) - 0.4), xlabel=name)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_variance(axes: Any, page: Page) -> None:
    if page.variance is None:
        return
    left = 0.0
    for part in page.variance.parts:
        label = f"{part.name} {part.percent}"
        axes.barh([0], [part.share], left=left, color=_COLORS[part.kind], label=label)
        left += part.share
    axes.set(xlim=(0, 1), yticks=[], xlabel="share of variance")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
