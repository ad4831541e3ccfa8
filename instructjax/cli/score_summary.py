"""What `instructjax score` says at the end."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from instructjax.cli.messages import escape_controls, say_error
from instructjax.data import RejectsFile
from instructjax.scoring.engine import Work
from instructjax.scoring.rows import ScoredRow


@dataclass(kw_only=True)
class ContextTotals:
    """Sums over the scores of one context."""

    scores: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0
    greedy: int = 0


@dataclass(kw_only=True)
class ScoreSummary:
    """Counts scores as they pass; constant memory.

    Attributes:
      work: positions computed and programs compiled.
      seconds: that scoring took.
    """

    work: Work
    seconds: float = 0.0
    by_context: dict[str, ContextTotals] = field(default_factory=dict)
    flags: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    _last: object = None

    @property
    def scores(self) -> int:
        """Rows of the table."""
        return sum(totals.scores for totals in self.by_context.values())

    def add(self, row: ScoredRow) -> None:
        """Counts one score."""
        totals = self.by_context.setdefault(row.context, ContextTotals())
        totals.scores += 1
        totals.tokens += row.num_tokens
        totals.bytes += row.num_bytes
        totals.nats += row.log_prob
        totals.greedy += row.greedy
        if row.status != "ok":
            self.flags.update(flag.partition("=")[0] for flag in row.status.split(","))
        if row.scored.request.row != self._last:
            self._last = row.scored.request.row
            self.rows += 1

    def show(self, *, out: Path, rejects: RejectsFile) -> None:
        """Prints the table and what was written; a warning if rows were left out."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("context", "scores", "tokens", "nats a token", "bits a byte", "greedy"):
            table.add_column(name, justify="left" if name == "context" else "right")
        for context, totals in self.by_context.items():
            bits = -totals.nats / (math.log(2) * totals.bytes) if totals.bytes else math.nan
            table.add_row(
                context,
                f"{totals.scores:,}",
                f"{totals.tokens:,}",
                f"{totals.nats / totals.tokens:.4f}",
                f"{bits:.4f}",
                f"{totals.greedy / totals.scores:.1%}",
            )
        Console().print(table)
        work, programs = self.work, len(self.work.programs)
        print(
            f"{work.useful:,} tokens in {self.seconds:.1f} s "
            f"({work.useful / max(self.seconds, 1e-9):,.0f} a second), "
            f"{work.useful_share:.0%} of the positions computed held one; "
            f"{programs} program{'' if programs == 1 else 's'}"
        )
        if self.flags:
            counts = ", ".join(f"{n:,} {name}" for name, n in self.flags.most_common())
            print(f"flagged in the column status: {counts}")
        rows = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        scores = "1 score" if self.scores == 1 else f"{self.scores:,} scores"
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in rejects.counts.most_common())
        left_out = f"left out {rejects.total:,} ({kinds})" if kinds else "nothing was left out"
        print(escape_controls(f"wrote {scores} of {rows} to {out}; {left_out}"), flush=True)
        if rejects.total:
            say_error(rejects.summarize(), label="warning: ")
