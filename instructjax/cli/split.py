"""`instructjax split DATA --by LEVEL --out FOLDER`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Split:
    """Divide rows into seen and unseen instructions by seen and unseen inputs, and look for leaks.

    FOLDER gets train.jsonl; eval.jsonl, whose rows have a `cell`: seen_c_unseen_z (new inputs of
    known instructions: the book's intra-task test), unseen_c_seen_z, unseen_c_unseen_z (both new:
    its inter-task test), and of the training pairs, seen_c_seen_z, as many as the largest of these;
    leaks.jsonl, what unseen texts share with training texts; split.json, recipe, counts and
    fingerprint. The same rows in any order give the same split. Texts, not names, tell what is the
    same: Unicode NFKC, and white space as one space. Rows that cannot be used go to
    FOLDER.rejects.jsonl.
    """

    EXAMPLE: ClassVar[str] = "instructjax split rows.jsonl --by task --out split"

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A .jsonl, .json, .csv, .tsv or .parquet file (text also as .gz), or a folder of them."""
    out: Path
    """The folder that is made."""
    by: Literal["instruction", "task", "category", "paraphrase", "compositional"] = "instruction"
    """What is held out: instruction texts, whole tasks or categories, other wordings of tasks that
    stay known, or new combinations of known words (see --method, --side)."""
    fraction_unseen_instructions: float = 0.2
    """Of the instructions, tasks, categories, or wordings of each task."""
    fraction_unseen_inputs: float = 0.2
    """Of the inputs of every task."""
    seed: int = 0
    """Of the choice."""
    preset: Literal["none", "superni-official"] = "none"
    """superni-official holds out the tasks that Super-NaturalInstructions does; tasks that are in
    neither of its splits are rejected. Its lists are found in the data's folder or beside it
    (splits/default), as in its repository, or named by --split-file."""
    split_file: Path | None = None
    """For the preset: the folder splits/default, .jsonl rows with `task` and `split`, a .json
    object, or a .txt list of the test tasks."""
    method: Literal["mcd", "length"] = "mcd"
    """For compositional: maximum compound divergence over words and pairs of words, or length."""
    side: Literal["input", "instruction"] = "input"
    """For compositional: which texts are divided so."""
    max_per_task: int | None = None
    """Evaluated rows of a task in each cell, at most."""
    fold_case: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let texts that differ only in case be the same."""
    leaks: Literal["report", "remove", "off"] = "report"
    """What to do about leaks: list them, also take the rows out of eval.jsonl, or do not look."""
    leak_cover: float = 0.5
    """A leak: this share of a text's words in runs of 8 that training texts have. A shared run of
    13 words is one at any share."""
    leak_similarity: float = 0.8
    """A leak: this Jaccard similarity of three-word shingles to one training text."""
    format: str | None = None
    """Of the data: contract, alpaca, dolly, superni, messages, flan, bigbench; else detected."""
    field: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=COLUMN: which column holds instruction, input, output, id...; give it once a name."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an earlier split in the folder."""

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return f"nothing was written to {self.out}"

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.split_run import run_split

        return run_split(self)
