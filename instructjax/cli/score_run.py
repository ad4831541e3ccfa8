"""`instructjax score`: from a data file to a score table, as a stream."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.score import Score
from instructjax.cli.score_summary import ScoreSummary
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.data.files import find_files
from instructjax.data.rejects import shorten_raw
from instructjax.display.progress import ScoringProgress
from instructjax.errors import DataError, InstructJaxError, PromptError, UsageError
from instructjax.models import Model, load_model, parse_spec
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring.api import make_encoder
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.rows import Intake, encode_row, parse_contexts, score_rows
from instructjax.scoring.table import to_record
from instructjax.scoring.table_files import check_target, open_table

SHOWN_REASONS = 5


class _NothingScored(Exception):
    """Leaves the table unwritten."""


def run_score(options: Score) -> int:
    """Scores a data file; returns the exit code.

    Raises:
      InstructJaxError: nothing was written; see the message.
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
    check_target(options.out, overwrite=options.overwrite)
    # Files are opened and their columns checked here, before any time goes into the model.
    rows = read_examples(options.data, format=options.format, fields=fields)
    _check_apart(options.data, options.out)
    parse_spec(options.model)
    if sys.stderr.isatty():
        print(f"loading {escape_controls(options.model)}", file=sys.stderr)
    model = load_model(options.model, dtype=options.dtype)
    encoder = make_encoder(model, **prompt_options)
    if options.strict:
        again = read_examples(options.data, format=options.format, fields=fields)
        if not _check_all(again, lambda example: encode_row(model, encoder, example, 0, contexts)):
            return 1
    with RejectsFile(options.out) as rejects:
        summary = _score(options, model, encoder, contexts, rows, rejects)
    if summary is not None:
        summary.show(out=options.out, rejects=rejects)
        return 0
    say_error(f"no row could be scored, and {options.out} was not written; {rejects.summarize()}")
    return 1


def _score(
    options: Score,
    model: Model,
    encoder: PromptEncoder,
    contexts: tuple[str, ...],
    rows: Iterator[Example | Reject],
    rejects: RejectsFile,
) -> ScoreSummary | None:
    intake, work = Intake(), Work()
    unread, checked = 0, False

    def examples() -> Iterator[Example]:
        nonlocal unread
        for row in rows:
            if isinstance(row, Example):
                yield row
            else:
                unread += 1
                rejects.write(row)

    def reject(example: Example, error: InstructJaxError) -> None:
        nonlocal checked
        if not checked and example.prompt_ids is None:
            # What no text could pass, such as a missing chat template, is no fault of the row.
            encoder.check()
            checked = True
        rejects.write(make_reject(example, error))

    metadata = describe_run(model, encoder, contexts)
    progress = ScoringProgress(estimate_rows(options.data), log=True)
    summary = ScoreSummary(work=work)
    try:
        with (
            open_table(options.out, metadata, overwrite=options.overwrite) as write,
            progress,
        ):
            for row in score_rows(
                model,
                examples(),
                encoder=encoder,
                contexts=contexts,
                on_error=reject,
                intake=intake,
                work=work,
                on_progress=lambda: progress.update(unread + intake.count_done(work), work.useful),
            ):
                write(to_record(row))
                summary.add(row)
            summary.seconds = progress.seconds
            if not summary.scores:
                raise _NothingScored
    except _NothingScored:
        return None
    return summary


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


def make_reject(example: Example, error: InstructJaxError) -> Reject:
    """A row that was read and cannot be scored, with the place that it was read from."""
    file, place = example.place or ("", example.id or "")
    kind = "cannot be encoded" if isinstance(error, PromptError) else "cannot be used"
    remedy = f"; {error.remedy}" if error.remedy else ""
    names = ("instruction", "input", "output", "prompt_ids", "output_ids")
    values = {name: value for name in names if (value := getattr(example, name))}
    return Reject(
        file=file,
        row=place,
        reason=f"{kind}: {error.message}{remedy}",
        raw=shorten_raw(json.dumps(values, ensure_ascii=False, default=str)),
    )


def _check_all(rows: Iterator[Example | Reject], encode: Callable[[Example], object]) -> bool:
    """Whether every row can be scored; says on standard error which cannot."""

    def find() -> Iterator[Reject]:
        for row in rows:
            if isinstance(row, Reject):
                yield row
                continue
            try:
                encode(row)
            except (DataError, PromptError) as error:
                yield make_reject(row, error)

    found = find()
    first = list(islice(found, SHOWN_REASONS))
    if not first:
        return True
    count = len(first) + sum(1 for _ in found)
    noun = "1 row" if count == 1 else f"{count:,} rows"
    say_error(f"{noun} cannot be used; with --strict nothing is scored or written")
    for reject in first:
        say_error(f"{reject.file}, {reject.row}: {reject.reason}", label="  ")
    if count > len(first):
        say_error(f"and {count - len(first):,} more", label="  ")
    return False


def _check_apart(data: Path, out: Path) -> None:
    """Refuses to write where it reads."""
    written = {os.path.realpath(path) for path in (out, f"{out}.rejects.jsonl", f"{out}.meta.json")}
    for file in find_files(data):
        if os.path.realpath(file) in written:
            raise UsageError(
                "is data and would be overwritten", file=file, remedy="choose another --out"
            )
