"""`instructjax rank`: from a data file to a table of ranked candidates, as a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Lock
from typing import Any

from rich.console import Console
from rich.table import Table

from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.rank import Rank
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.score_checks import check_all, check_apart, make_reject
from instructjax.cli.score_run import parse_fields
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.display.progress import ScoringProgress
from instructjax.errors import InstructJaxError, PromptError, UsageError
from instructjax.models import Model, load_model, parse_spec
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.calibration import RankMetrics, RankTotals
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.rank_candidates import rank_rows
from instructjax.scoring.rank_prompts import (
    CONTENT_FREE,
    describe_normalization,
    find_answer,
    make_variants,
)
from instructjax.scoring.ranking import RANK_SCHEMA, to_rank_records
from instructjax.scoring.rows import encode_row
from instructjax.scoring.table_files import check_target, open_table


class _NothingRanked(Exception):
    """Leaves the table unwritten."""


def run_rank(options: Rank) -> int:
    """Ranks the candidates of a data file; returns the exit code.

    Raises:
      InstructJaxError: nothing was written; see the message.
    """
    how = parse_normalization(options)
    prompt_options: dict[str, Any] = {
        "layout": options.layout,
        "include_eos": options.include_eos,
        "boundary": options.boundary,
        "truncation": options.truncation,
        "max_length": options.max_length,
    }
    PromptOptions(**prompt_options)
    fields = parse_fields(options.field)
    if options.answer is not None:
        if "answer" in fields:
            raise UsageError("--answer and --field answer=... are the same", remedy="give one")
        fields["answer"] = options.answer
    check_target(options.out, overwrite=options.overwrite)
    # Files are opened and their columns checked here, before any time goes into the model.
    rows = read_examples(options.data, format=options.format, fields=fields)
    check_apart(options.data, options.out)
    parse_spec(options.model)
    if sys.stderr.isatty():
        print(f"loading {escape_controls(options.model)}", file=sys.stderr)
    model = load_model(options.model, dtype=options.dtype)
    encoder = make_encoder(model, **prompt_options)
    if options.strict:

        def check(example: Example) -> None:
            find_answer(example)
            for one in (example, *make_variants(example, **how)):
                encode_row(model, encoder, one, 0, ("cz",))

        again = read_examples(options.data, format=options.format, fields=fields)
        if not check_all(again, check):
            return 1
    caching = nullcontext() if options.cache is None else ScoreCache(options.cache, model)
    with caching as cache, RejectsFile(options.out) as rejects:
        totals = _rank(options, model, encoder, how, rows, rejects, cache)
        if totals is not None:
            if cache is not None:
                asked = cache.hits + cache.misses
                print(escape_controls(f"{cache.hits:,} of {asked:,} scores were in {cache.path}"))
            show_metrics(totals.metrics, options.normalization)
    if totals is None:
        say_error(
            f"no row could be ranked, and {options.out} was not written; {rejects.summarize()}"
        )
        return 1
    count = totals.num_examples
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in rejects.counts.most_common())
    left_out = f"left out {rejects.total:,} ({kinds})" if kinds else "nothing was left out"
    ranked = f"ranked the candidates of {'1 row' if count == 1 else f'{count:,} rows'}"
    print(escape_controls(f"{ranked} in {options.out}; {left_out}"), flush=True)
    if rejects.total:
        say_error(rejects.summarize(), label="warning: ")
    return 0


def parse_normalization(options: Rank) -> dict[str, Any]:
    """Arguments of `rank_rows` that say what is compared.

    Raises:
      UsageError: an option of another normalization.
    """
    if options.normalization != "pmi" and (options.premise_text or options.premise != "none"):
        raise UsageError("a premise is for --normalization pmi", remedy="leave it out")
    if options.premise_text is not None and options.premise != "none":
        raise UsageError("--premise and --premise-text exclude each other", remedy="give one")
    if options.normalization != "calibrated" and options.content_free:
        raise UsageError("--content-free is for --normalization calibrated", remedy="leave it out")
    text = options.premise_text
    return {
        "normalization": options.normalization,
        "premise": options.premise if text is None else Example(instruction=text),
        "content_free": options.content_free or CONTENT_FREE,
    }


def _rank(
    options: Rank,
    model: Model,
    encoder: PromptEncoder,
    how: dict[str, Any],
    rows: Iterator[Example | Reject],
    rejects: RejectsFile,
    cache: ScoreCache | None,
) -> RankTotals | None:
    unread, checked = 0, False
    one_at_a_time = Lock()  # rows are read in another thread than the one that ranks them

    def examples() -> Iterator[Example]:
        nonlocal unread
        for row in rows:
            if isinstance(row, Example):
                yield row
            else:
                unread += 1
                with one_at_a_time:
                    rejects.write(row)

    def reject(example: Example, error: InstructJaxError) -> None:
        nonlocal checked
        if not checked and isinstance(error, PromptError) and example.prompt_ids is None:
            # What no text could pass, such as a missing chat template, is no fault of the row.
            encoder.check()
            checked = True
        with one_at_a_time:
            rejects.write(make_reject(example, error))

    metadata = {**describe_run(model, encoder, ("cz",)), **describe_normalization(**how)}
    progress = ScoringProgress(estimate_rows(options.data), log=True)
    totals, work = RankTotals(), Work()
    try:
        with (
            open_table(
                options.out, metadata, overwrite=options.overwrite, schema=RANK_SCHEMA
            ) as write,
            progress,
        ):
            for ranked in rank_rows(
                model,
                examples(),
                encoder=encoder,
                **how,
                on_error=reject,
                cache=cache,
                work=work,
                on_progress=lambda done: progress.update(unread + done, work.useful),
            ):
                for record in to_rank_records(ranked):
                    write(record)
                totals.add(
                    ranked.log_posterior, best=ranked.best, tie=ranked.tie, answer=ranked.answer
                )
            if not totals.num_examples:
                raise _NothingRanked
    except _NothingRanked:
        return None
    return totals


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
