"""What a run found, as a JSON file and as Markdown beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table


def to_markdown(table: Table) -> str:
    """A table that was printed, title and all, as Markdown."""
    columns = [(str(c.header), c.justify, [str(cell) for cell in c.cells]) for c in table.columns]
    lines = [
        [header for header, _, _ in columns],
        ["---:" if justify == "right" else "---" for _, justify, _ in columns],
        *zip(*(cells for _, _, cells in columns), strict=True),
    ]
    rows = (f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return "\n".join([f"**{table.title}**", "", *rows])


def write_report(out: Path, report: Any, title: str, parts: Sequence[Table | str]) -> None:
    """Writes both files.

    Args:
      out: the JSON file; Markdown goes to the same name with `.md`.
      report: what the JSON file holds.
      title: the heading.
      parts: tables and paragraphs, in order.
    """
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    texts = [part if isinstance(part, str) else to_markdown(part) for part in parts]
    text = "\n\n".join([f"# {title}", *texts]) + "\n"
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"wrote {out} and {out.with_suffix('.md').name}")
