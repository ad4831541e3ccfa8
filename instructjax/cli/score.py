"""`instructjax score DATA --out FILE`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from instructjax.cli.process_options import ProcessOptions
from instructjax.cli.table_options import TableOptions


@dataclass(frozen=True, kw_only=True)
class Score(TableOptions, ProcessOptions):
    """Write log Pr(y | c, z) of every row of a data file, with each token's, to a table.

    Rows are read, scored and written as a stream. Rows that cannot be used go to
    OUT.rejects.jsonl with place and reason. The table appears when it is complete. A run that is
    stopped, in whatever way, keeps what it has in OUT.parts; the same command goes on.
    """

    EXAMPLE: ClassVar[str] = "instructjax score rows.jsonl --out scores.parquet --contexts cz,z"
    DONE: ClassVar[str] = "scored"

    contexts: str = "cz"
    """What of c and z the prompt holds, several with commas: cz, c, z, none."""
    turns: Literal["last", "all"] = "last"
    """Which assistant turns of a conversation to score."""
    top_k: int | None = None
    """Also write each token's entropy, its rank and so many of the likeliest in its place, from 0
    to 1,024."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.score_run import run_score

        return run_score(self)
