"""`instructjax rank`: from a data file to a table of ranked candidates."""

from __future__ import annotations

from itertools import chain
from typing import Any

from rich.console import Console
from rich.table import Table

from instructjax.cli.rank import Rank
from instructjax.cli.score_summary import describe_work
from instructjax.cli.table_run import (
    Records,
    TableJob,
    open_rows,
    show_end,
    write_table,
)
from instructjax.data import Example
from instructjax.data.fields import parse_fields
from instructjax.errors import UsageError
from instructjax.models import load_model
from instructjax.prompts import PromptOptions
from instructjax.scoring.api import make_encoder
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.ranking.metrics import RankMetrics, RankTotals
from instructjax.scoring.ranking.options import CONTENT_FREE, RankOptions
from instructjax.scoring.ranking.prompts import encode_candidates
from instructjax.scoring.ranking.stream import compare_chunk
from instructjax.scoring.ranking.table import RANK_SCHEMA, to_rank_records
from instructjax.scoring.runs.stream import ScoredChunk
from instructjax.sharding import choose_mesh


def run_rank(options: Rank) -> int:
    """Ranks the candidates of a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no new table; see the message. What was ranked is kept.
    """
    how = parse_rank_options(options)
    prompt_options = options.prompt_options()
    PromptOptions(**prompt_options)
    fields = parse_fields(options.field)
    if options.answer is not None:
        if "answer" in fields:
            raise UsageError("--answer and --field answer=... are the same", remedy="give one")
        fields["answer"] = options.answer
    rows = open_rows(options, fields)
    model = load_model(options.model, dtype=options.dtype, mesh=choose_mesh(options.mesh))
    encoder = make_encoder(model, **prompt_options)
    totals = RankTotals()

    def record(chunk: ScoredChunk) -> tuple[Records, dict[str, Any]]:
        ranked = list(compare_chunk(chunk, how, model.tokenizer))
        counts = RankTotals()
        for one in ranked:
            counts.add(one.log_posterior, best=one.best, tie=one.tie, answer=one.answer)
        return chain.from_iterable(map(to_rank_records, ranked)), counts.to_json()

    job = TableJob(
        schema=RANK_SCHEMA,
        metadata={**describe_run(model, encoder, ("cz",)), **how.describe()},
        encode=lambda example, row: encode_candidates(model, encoder, example, row, how),
        record=record,
        count=lambda counts: totals.merge(RankTotals.from_json(counts)),
    )
    written = write_table(options, job, rows, model=model, encoder=encoder, fields=fields)
    if isinstance(written, int):
        return written
    show_metrics(totals.metrics, options.normalization)
    if written.work.computed:
        print(describe_work(written.work, written.headway))
    count = totals.num_examples
    ranked = f"ranked the candidates of {'1 row' if count == 1 else f'{count:,} rows'}"
    show_end(f"{ranked} in {options.out}", written)
    return 0


def parse_rank_options(options: Rank) -> RankOptions:
    """What candidates are compared by.

    Raises:
      UsageError: an option of another normalization.
    """
    if options.normalization != "pmi" and (
        options.premise_text is not None or options.premise != "none"
    ):
        raise UsageError("a premise is for --normalization pmi", remedy="leave it out")
    if options.premise_text is not None and options.premise != "none":
        raise UsageError("--premise and --premise-text exclude each other", remedy="give one")
    if options.normalization != "calibrated" and options.content_free:
        raise UsageError("--content-free is for --normalization calibrated", remedy="leave it out")
    text = options.premise_text
    return RankOptions(
        normalization=options.normalization,
        premise=options.premise if text is None else Example(instruction=text),
        content_free=options.content_free or CONTENT_FREE,
    )


def show_metrics(metrics: RankMetrics, normalization: str) -> None:
    """Prints what the ranking is worth where the right candidate is known, and how many tie."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("normalization", "rows", "ties", "answers", "accuracy", "ECE", "Brier", "log loss")
    for name in names:
        table.add_column(name, justify="left" if name == "normalization" else "right")
    values = (metrics.accuracy, metrics.ece, metrics.brier, metrics.log_loss)
    table.add_row(
        normalization,
        f"{metrics.num_examples:,}",
        f"{metrics.num_ties:,}",
        f"{metrics.num_answered:,}",
        *(f"{value:.4f}" if metrics.num_answered else "" for value in values),
    )
    Console().print(table)
