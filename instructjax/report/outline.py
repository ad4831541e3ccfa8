"""What a page says, section by section, for formats that have no more than text and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instructjax.report.tables import Table, escape_latex, escape_markdown, make_table
from instructjax.report.texts import shorten

if TYPE_CHECKING:
    from instructjax.report.page import Page


@dataclass(frozen=True, kw_only=True)
class Section:
    """Paragraphs and tables under a heading."""

    heading: str
    texts: tuple[str, ...]
    tables: tuple[Table, ...]


def make_outline(page: Page) -> list[Section]:
    """All sentences and numbers of a page; pictures are left out."""
    grid = [
        (
            f"m{k} {cell.what}",
            cell.mean,
            cell.range,
            f"{cell.rows:,}" + (f" ({cell.missing:,} missing)" if cell.missing else ""),
            str(cell.instructions),
            str(cell.inputs),
        )
        for k, cell in enumerate(page.cells)
        if cell.rows or cell.missing
    ]
    means = make_table(
        f"Mean {page.metric} of {shorten(page.model, 80)}",
        ("cell",),
        ("mean", f"{page.confidence} interval", "scores", "instructions", "inputs"),
        grid,
    )
    rows = [(gap.label, gap.note, gap.text) for gap in page.gaps]
    gaps = make_table("Gaps", ("gap", "of"), ("estimate",), rows) if rows else None
    found = [
        _section("Seen and unseen", [], [means]),
        _section("What the unseen costs", page.more, [gaps]),
        _section("What hurts most", [], page.worst),
    ]
    if (wording := page.wording) is not None:
        found.append(_section("Sensitivity to wording", [wording.note], [wording.table]))
    if (variance := page.variance) is not None:
        tables = [variance.table, variance.plan]
        found.append(_section("Where the variance lies", [variance.note, variance.advice], tables))
    if (parts := page.contributions) is not None:
        heading = "What the instruction and the input each contribute"
        found.append(_section(heading, [parts.note], [parts.table]))
    if (models := page.models) is not None:
        found.append(_section("Side by side", [models.note], models.tables))
    if (leaks := page.leaks) is not None:
        found.append(_section("Leaks", [leaks.note], [leaks.table]))
    facts = [make_table(fact.name, ("what", "value"), (), fact.values) for fact in page.facts]
    found.append(_section("To run it again", [page.command], facts))
    return [section for section in found if section.texts or section.tables]


def _section(heading: str, texts: Sequence[str], tables: Sequence[Table | None]) -> Section:
    return Section(
        heading=heading,
        texts=tuple(filter(None, texts)),
        tables=tuple(table for table in tables if table is not None),
    )


def to_markdown(lead: Sequence[str], sections: Sequence[Section]) -> str:
    """A verdict in bold with what goes with it, and sections, as GitHub's Markdown."""
    parts = [f"**{escape_markdown(lead[0])}**", *map(escape_markdown, lead[1:])]
    for section in sections:
        parts.append(f"## {escape_markdown(section.heading)}")
        parts += map(escape_markdown, section.texts)
        parts += (table.to_markdown() for table in section.tables)
    return "\n\n".join(parts) + "\n"


def to_latex(lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The same as LaTeX (package booktabs), to be put into a document."""
    parts = [rf"\textbf{{{escape_latex(lead[0])}}}", *map(escape_latex, lead[1:])]
    for section in sections:
        parts.append(rf"\paragraph{{{escape_latex(section.heading)}}}")
        parts += map(escape_latex, section.texts)
        parts += (table.to_latex() for table in section.tables)
    return "\n\n".join(parts) + "\n"
