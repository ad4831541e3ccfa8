"""From a data file to a table, as a stream that can be stopped: what verbs that write one share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.score_checks import check_all, check_apart
from instructjax.cli.table_options import DataOptions
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.data.files import find_files
from instructjax.data.unusable import make_reject
from instructjax.display.progress import ScoringProgress
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.models import Model, parse_spec
from instructjax.prompts import PromptEncoder, Request
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.runs import chunks
from instructjax.scoring.runs.chunks import Chunk
from instructjax.scoring.runs.folder import is_finished
from instructjax.scoring.runs.manifest import describe_files
from instructjax.scoring.runs.parts import Parts
from instructjax.scoring.runs.shared_parts import FollowedParts, open_shared_parts
from instructjax.scoring.runs.stream import Headway, score_chunks
from instructjax.scoring.tables.files import check_target
from instructjax.sharding.processes import leads, several

Rows = Iterator[Example | Reject]
Records = Iterable[Mapping[str, Any]]
Chunks = Generator[Any, None, None]


@dataclass(frozen=True, kw_only=True)
class TableJob:
    """What a verb does with rows.

    Attributes:
      schema, metadata: of the table.
      encode: requests of an example, given its index.
      record: the records of a chunk, and its counts as a JSON value.
      count: takes the counts of a part, in the order of the input, earlier runs' parts too.
      compute: what is done with chunks where they are not scored; given how far the run is, what
        it computed, and what to call now and then.
      chunk_rows: of the input in a chunk, if fewer than `CHUNK_ROWS`.
      top_k: how many best alternatives to keep a token, where chunks are scored.
    """

    schema: pa.Schema
    metadata: Mapping[str, str]
    encode: Callable[[Example, int], list[Request]]
    record: Callable[[Any], tuple[Records, Any]]
    count: Callable[[Any], None]
    compute: Callable[[Iterable[Chunk], Headway, Work, Callable[[], None]], Chunks] | None = None
    chunk_rows: int | None = None
    top_k: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a table came to be."""

    headway: Headway
    work: Work
    rejects: RejectsFile
    cache: ScoreCache | None


def open_rows(options: DataOptions, fields: Mapping[str, str]) -> Rows:
    """The rows of the data, after checks of all that needs no model.

    Raises:
      InstructJaxError: a file cannot be read or written, or the model's name is none.
    """
    if leads():
        check_target(options.out, overwrite=options.overwrite or is_finished(options.out))
    # Files are opened and their columns checked here, before any time goes into the model.
    rows = _read(options, fields)
    check_apart(options.data, options.out)
    parse_spec(options.model)
    if sys.stderr.isatty():
        print(f"loading {escape_controls(options.model)}", file=sys.stderr)
    return rows


def _read(options: DataOptions, fields: Mapping[str, str]) -> Rows:
    return read_examples(
        options.data,
        format=options.format,
        fields=fields,
        needs_output=options.NEEDS_OUTPUT,
    )


def write_table(
    options: DataOptions,
    job: TableJob,
    rows: Rows,
    *,
    model: Model,
    encoder: PromptEncoder,
    fields: Mapping[str, str],
) -> Written | int:
    """Writes the table of a data file, or goes on with what an earlier run left of it.

    Returns:
      How it was done; or an exit code, after having said why there is nothing to tell.

    Raises:
      InstructJaxError: there is no new table; see the message. What was done is kept.
    """
    folder = getattr(options, "cache", None)
    if folder is not None and several():
        # What is found must be the same everywhere, or one waits for the other.
        raise UsageError("--cache is not for several processes", remedy="leave it out")
    with open_shared_parts(
        options.out,
        job.metadata,
        _describe_inputs(options, job, fields, model),
        overwrite=options.overwrite,
        schema=job.schema,
    ) as parts:
        if parts.complete:
            print(escape_controls(f"{options.out} is complete: an earlier run had written it"))
            return 0
        if isinstance(parts, FollowedParts):
            _run(options, job, rows, model, encoder, parts, None)
            return 0
        if parts.done:
            say_error(f"going on after {parts.rows:,} rows that are {options.DONE}", label="")
        elif options.strict:
            again = _read(options, fields)
            if not check_all(again, lambda row: job.encode(row, 0)):
                parts.discard()
                return 1
        caching = nullcontext() if folder is None else ScoreCache(folder, model)
        with caching as cache:
            headway, work = _run(options, job, rows, model, encoder, parts, cache)
        with RejectsFile(options.out) as rejects:
            for note in parts.read_notes():
                job.count(note["counts"])
                for reject in note["rejects"]:
                    rejects.write(Reject(**reject))
        if rejects.total == parts.rows:
            parts.discard()
            say_error(
                f"no row could be {options.DONE}, and {options.out} was not written; "
                f"{rejects.summarize()}; the first, {rejects.first}"
            )
            return 1
        parts.finish()
    return Written(headway=headway, work=work, rejects=rejects, cache=cache)


def show_end(done: str, written: Written) -> None:
    """Prints the last lines: what the cache gave, what was done, and what was left out and why."""
    cache, rejects = written.cache, written.rejects
    if cache is not None:
        asked = cache.hits + cache.misses
        print(escape_controls(f"{cache.hits:,} of {asked:,} scores were found in {cache.path}"))
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in rejects.counts.most_common())
    left_out = f"left out {rejects.total:,} ({kinds})" if kinds else "nothing was left out"
    print(escape_controls(f"{done}; {left_out}"), flush=True)
    if rejects.total:
        say_error(rejects.summarize(), label="warning: ")


def _run(
    options: DataOptions,
    job: TableJob,
    rows: Rows,
    model: Model,
    encoder: PromptEncoder,
    parts: Parts | FollowedParts,
    cache: ScoreCache | None,
) -> tuple[Headway, Work]:
    """Does what is not done yet; a thread writes each chunk while the next one is scored."""

    def encode(row: Example | Reject, place: int) -> list[Request] | Reject:
        if isinstance(row, Reject):
            return row
        try:
            return job.encode(row, place)
        except (DataError, PromptError) as error:
            if row.prompt_ids is None:
                encoder.check()
            return make_reject(row, error)

    def write(chunk: Any) -> None:
        records, counts = job.record(chunk)
        rejects = [dataclasses.asdict(row) for row in chunk.failures if isinstance(row, Reject)]
        parts.add(chunk.first, chunk.stop, records, {"counts": counts, "rejects": rejects})

    headway, work = Headway(rows=parts.rows), Work()
    progress = ScoringProgress(estimate_rows(options.data), log=True)
    encoded = chunks.make_chunks(
        rows,
        encode,
        done=parts.done.copy(),
        tokens=chunks.chunk_tokens(model),
        most_rows=job.chunk_rows,
        top_k=job.top_k,
        shared=True,
    )

    def show() -> None:
        progress.update(headway.rows, work.useful)

    scored = (
        score_chunks(
            model,
            encoded,
            top_k=job.top_k,
            cache=cache,
            headway=headway,
            work=work,
            on_progress=show,
        )
        if job.compute is None
        else job.compute(encoded, headway, work, show)
    )
    writing: Future[None] | None = None
    with progress, ThreadPoolExecutor(1, thread_name_prefix="write") as writer, closing(scored):
        for chunk in scored:
            if writing is not None:
                writing.result()
            writing = writer.submit(write, chunk)
        if writing is not None:
            writing.result()
    return headway, work


def _describe_inputs(
    options: DataOptions, job: TableJob, fields: Mapping[str, str], model: Model
) -> dict[str, str]:
    """What the rows of the table depend on beside the model and the rules of its prompts."""
    return {
        "format": options.format or "detected",
        "field": ", ".join(f"{name}={column}" for name, column in sorted(fields.items())) or "none",
        "strict": str(options.strict).lower(),
        "chunks": f"{job.chunk_rows or chunks.CHUNK_ROWS} rows, {chunks.chunk_tokens(model)} "
        f"distinct tokens, {chunks.HELD_TOKENS} in all",
        **describe_files(find_files(options.data)),
    }
