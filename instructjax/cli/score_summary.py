"""What `instructjax score` counts, and what it says at the end."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from instructjax.cli.table_run import Written, show_end
from instructjax.scoring.engine import Work
from instructjax.scoring.rows import ScoredRow
from instructjax.scoring.runs.stream import Headway


@dataclass(kw_only=True)
class ContextTotals:
    """Sums over the scores of one context."""

    scores: int = 0
    tokens: int = 0
    bytes: int = 0
    nats: float = 0.0
    greedy: int = 0


@dataclass(kw_only=True)
class Counts:
    """Counts of scores, kept with each part of a table and added up at the end."""

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

    def merge(self, other: Counts) -> None:
        """Adds the counts of other rows."""
        for context, more in other.by_context.items():
            totals = self.by_context.setdefault(context, ContextTotals())
            for name, value in dataclasses.asdict(more).items():
                setattr(totals, name, getattr(totals, name) + value)
        self.flags += other.flags
        self.rows += other.rows

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values."""
        contexts = {name: dataclasses.asdict(totals) for name, totals in self.by_context.items()}
        return {"by_context": contexts, "flags": dict(self.flags), "rows": self.rows}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counts:
        """The counts that `to_json` wrote.

        >>> counts = Counts(by_context={"cz": ContextTotals(scores=2, nats=-0.1)}, rows=1)
        >>> Counts.from_json(counts.to_json()) == counts
        True
        """
        contexts = {name: ContextTotals(**totals) for name, totals in values["by_context"].items()}
        return cls(by_context=contexts, flags=Counter(values["flags"]), rows=values["rows"])


def show_summary(counts: Counts, written: Written, out: Path) -> None:
    """Prints the table and what was written; a warning if rows were left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("context", "scores", "tokens", "nats a token", "bits a byte", "greedy"):
        table.add_column(name, justify="left" if name == "context" else "right")
    for context, totals in counts.by_context.items():
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
    if written.work.computed:
        print(describe_work(written.work, written.headway))
    if counts.flags:
        flags = ", ".join(f"{n:,} {name}" for name, n in counts.flags.most_common())
        print(f"flagged in the column status: {flags}")
    rows = "1 row" if counts.rows == 1 else f"{counts.rows:,} rows"
    scores = "1 score" if counts.scores == 1 else f"{counts.scores:,} scores"
    show_end(f"wrote {scores} of {rows} to {out}", written)


def describe_sharing(work: Work) -> list[str]:
    """How many tokens were computed where some stand in several requests, and how many had to be.

    >>> describe_sharing(Work(requested=1000, useful=1000, distinct=150))
    ['1,000 computed', '150 distinct among those packed together']
    """
    if work.distinct == work.requested:
        return []
    why = ", as prefixes are shared" if work.useful < work.requested else ""
    return [
        f"{work.useful:,} computed{why}",
        f"{work.distinct:,} distinct among those packed together",
    ]


def describe_work(work: Work, headway: Headway) -> str:
    """What was asked of the model, what it computed for that, and whether it had to wait."""
    programs = len(work.programs)
    parts = [
        f"{work.requested:,} tokens in {headway.seconds:.1f} s "
        f"({work.requested / max(headway.seconds, 1e-9):,.0f} a second)"
    ]
    parts += [
        *describe_sharing(work),
        f"{work.useful_share:.0%} of the positions computed held one",
        f"{programs} program{'' if programs == 1 else 's'}",
        f"the model waited for rows {headway.waiting_share:.1%} of the time",
    ]
    return "; ".join(parts)
