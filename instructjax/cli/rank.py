"""`instructjax rank DATA --out FILE`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from instructjax.cli.process_options import ProcessOptions
from instructjax.cli.table_options import TableOptions


@dataclass(frozen=True, kw_only=True)
class Rank(TableOptions, ProcessOptions):
    """Say which of several given responses a model finds best in every row, and how sure it is.

    Rows have a list of candidates as `output`. Where the right one is known (a column `answer`,
    or --answer), accuracy and calibration are told. Rows that cannot be used go to
    OUT.rejects.jsonl with place and reason. The table appears when it is complete. A run that is
    stopped, in whatever way, keeps what it has in OUT.parts; the same command goes on.
    """

    EXAMPLE: ClassVar[str] = "instructjax rank rows.jsonl --out ranks.parquet --normalization pmi"
    DONE: ClassVar[str] = "ranked"

    normalization: Literal["sum", "per_token", "per_character", "per_byte", "pmi", "calibrated"] = (
        "sum"
    )
    """What candidates are compared by: log Pr, the same a token, a character or a byte, pointwise
    mutual information with the prompt, or log Pr after contextual calibration."""
    answer: str | None = None
    """Column that holds the right candidate: its index from 0, or its text."""
    premise: Literal["none", "c", "z"] = "none"
    """For pmi, what the prompt keeps of c and z in the comparison."""
    premise_text: str | None = None
    """For pmi, a prompt of its own for the comparison, such as "The answer is:"."""
    content_free: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """For calibrated, what is put in the place of z; by default "N/A", "[MASK]" and "". Give it
    once a text."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.rank_run import run_rank

        return run_rank(self)
