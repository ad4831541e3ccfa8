"""`instructjax report RESULTS... --out report.html`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one page that says at which level a model generalizes, and how sure that is.

    RESULTS are evaluation tables (`instructjax evaluate`), one or several models; score tables
    (`instructjax score --contexts cz,c,z,none`), for what c and z contribute token by token; and
    split.json or leaks.jsonl of the split. The page holds all it needs: no network. A name that
    ends in .md or .tex gives its text and tables without the pictures.
    """

    EXAMPLE: ClassVar[str] = "instructjax report results.parquet split/split.json --out report.html"

    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
    """Evaluation tables, score tables (.parquet, .jsonl, .csv), split.json, leaks.jsonl."""
    out: Path
    """The page (.html), or its text and tables (.md, .tex)."""
    metric: str | None = None
    """Which metric the verdict is about; by default the first of a table."""
    weights: Literal["micro", "macro"] = "micro"
    """Let all scores count alike, or all tasks."""
    epsilon: float | None = None
    """The threshold of performance to test the cell means against."""
    smallest_gap: float = 0.05
    """The smallest gap that matters, in units of the metric; 0 or more."""
    better: Literal["higher", "lower"] | None = None
    """Whether higher or lower values are better; known of the metrics of `evaluate`, not of one of
    your own."""
    model: str | None = None
    """Which model the verdict is about, where tables have several; by default the first."""
    tokenizer: str | None = None
    """Model spec whose tokenizer spells the tokens of score tables; by default what they name."""
    figures: Path | None = None
    """A folder for the figures as SVG and PNG; needs matplotlib."""
    title: str = "At which level does it generalize?"
    """Of the page."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an existing page."""

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return f"nothing was written to {self.out}"

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.report_run import run_report

        return run_report(self)
