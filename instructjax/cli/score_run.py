"""`instructjax score`: from a data file to a score table, as a stream that can be stopped."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from typing import Any

from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.score import Score
from instructjax.cli.score_checks import check_all, check_apart, make_reject
from instructjax.cli.score_summary import Counts, show_summary
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.data.files import find_files
from instructjax.display.progress import ScoringProgress
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.models import Model, load_model, parse_spec
from instructjax.prompts import PromptEncoder, PromptOptions, Request
from instructjax.scoring import chunks
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.manifest import describe_files
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.resume import Parts, is_finished, open_parts
from instructjax.scoring.rows import encode_row, parse_contexts
from instructjax.scoring.stream import Headway, ScoredChunk, score_chunks
from instructjax.scoring.table import to_record
from instructjax.scoring.table_files import check_target

Rows = Iterator[Example | Reject]


def run_score(options: Score) -> int:
    """Scores a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no new table; see the message. What was scored is kept.
    """
    contexts = parse_contexts(options.contexts)
    prompt_options: dict[str, Any] = {
        "layout": options.layout,
        "include_eos": options.include_eos,
        "boundary": options.boundary,
        "truncation": options.truncation,
        "max_length": options.max_length,
        "turns": options.turns,
    }
    PromptOptions(**prompt_options)
    fields = parse_fields(options.field)
    check_target(options.out, overwrite=options.overwrite or is_finished(options.out))
    # Files are opened and their columns checked here, before any time goes into the model.
    rows = read_examples(options.data, format=options.format, fields=fields)
    check_apart(options.data, options.out)
    parse_spec(options.model)
    if sys.stderr.isatty():
        print(f"loading {escape_controls(options.model)}", file=sys.stderr)
    model = load_model(options.model, dtype=options.dtype)
    encoder = make_encoder(model, **prompt_options)
    metadata = describe_run(model, encoder, contexts)
    inputs = _describe_inputs(options, fields)
    with open_parts(options.out, metadata, inputs, overwrite=options.overwrite) as parts:
        if parts.complete:
            print(f"{escape_controls(str(options.out))} is complete: an earlier run had written it")
            return 0
        if parts.done:
            say_error(f"going on after {parts.rows:,} rows that are scored", label="")
        elif options.strict:
            again = read_examples(options.data, format=options.format, fields=fields)
            if not check_all(again, lambda row: encode_row(model, encoder, row, 0, contexts)):
                parts.discard()
                return 1
        caching = nullcontext() if options.cache is None else ScoreCache(options.cache, model)
        with caching as cache:
            headway, work = _score(options, model, encoder, contexts, rows, parts, cache)
        counts = Counts()
        with RejectsFile(options.out) as rejects:
            for note in parts.read_notes():
                counts.merge(Counts.from_json(note["counts"]))
                for reject in note["rejects"]:
                    rejects.write(Reject(**reject))
        if not counts.scores:
            parts.discard()
            say_error(
                f"no row could be scored, and {options.out} was not written; {rejects.summarize()}"
            )
            return 1
        parts.finish()
    show_summary(counts, work=work, headway=headway, cache=cache, out=options.out, rejects=rejects)
    return 0


def _score(
    options: Score,
    model: Model,
    encoder: PromptEncoder,
    contexts: tuple[str, ...],
    rows: Rows,
    parts: Parts,
    cache: ScoreCache | None,
) -> tuple[Headway, Work]:
    """Scores what is not done yet; a thread writes each chunk while the next one is scored."""
    checked = False

    def encode(row: Example | Reject, place: int) -> list[Request] | Reject:
        nonlocal checked
        if isinstance(row, Reject):
            return row
        try:
            return encode_row(model, encoder, row, place, contexts)
        except (DataError, PromptError) as error:
            if not checked and row.prompt_ids is None:
                # What no text could pass, such as a missing chat template, is no fault of the row.
                encoder.check()
                checked = True
            return make_reject(row, error)

    headway, work = Headway(rows=parts.rows), Work()
    progress = ScoringProgress(estimate_rows(options.data), log=True)
    scored = score_chunks(
        model,
        chunks.make_chunks(rows, encode, done=parts.done.copy()),
        cache=cache,
        headway=headway,
        work=work,
        on_progress=lambda: progress.update(headway.rows, work.useful),
    )
    writing: Future[None] | None = None
    with progress, ThreadPoolExecutor(1, thread_name_prefix="write") as writer, closing(scored):
        for chunk in scored:
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, parts, chunk)
        if writing is not None:
            writing.result()
    return headway, work


def _write(parts: Parts, chunk: ScoredChunk) -> None:
    counts = Counts()
    for row in chunk.rows:
        counts.add(row)
    rejects = [dataclasses.asdict(row) for row in chunk.failures if isinstance(row, Reject)]
    note = {"counts": counts.to_json(), "rejects": rejects}
    parts.add(chunk.first, chunk.stop, map(to_record, chunk.rows), note)


def _describe_inputs(options: Score, fields: Mapping[str, str]) -> dict[str, str]:
    """What the rows of the table depend on beside the model and the rules of its prompts."""
    return {
        "format": options.format or "detected",
        "field": ", ".join(f"{name}={column}" for name, column in sorted(fields.items())) or "none",
        "strict": str(options.strict).lower(),
        "chunks": f"{chunks.CHUNK_ROWS} rows, {chunks.CHUNK_TOKENS} tokens",
        **describe_files(find_files(options.data)),
    }


def parse_fields(pairs: tuple[str, ...]) -> dict[str, str]:
    """Column names by the contract's names.

    Raises:
      UsageError: a part without "=", or one name twice.

    >>> parse_fields(("instruction=question", "output=a=b"))
    {'instruction': 'question', 'output': 'a=b'}
    """
    fields: dict[str, str] = {}
    for pair in pairs:
        name, sign, column = pair.partition("=")
        if not (name and sign and column) or name in fields:
            raise UsageError(
                f"--field {pair!r} " + ("comes twice" if name in fields else "is no NAME=COLUMN"),
                remedy="write for example --field instruction=question --field output=answer",
            )
        fields[name] = column
    return fields
