"""`instructjax sample`: from a data file to a table of responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Any

from instructjax.cli.sample import Sample
from instructjax.cli.table_run import (
    Records,
    TableJob,
    open_rows,
    show_end,
    write_table,
)
from instructjax.data import Example
from instructjax.data.fields import parse_fields
from instructjax.models import load_model
from instructjax.prompts import Request
from instructjax.sampling.api import check_count
from instructjax.sampling.engine import Sampler
from instructjax.sampling.rows import encode_prompt, make_prompt_encoder
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.stream import (
    SAMPLE_CHUNK_ROWS,
    SampledChunk,
    describe_sampling,
    sample_chunks,
)
from instructjax.sampling.table import SAMPLE_SCHEMA, to_sample_record
from instructjax.scoring.engine import Work
from instructjax.scoring.runs.chunks import Chunk
from instructjax.scoring.runs.stream import Headway
from instructjax.sharding import choose_mesh


def run_sample(options: Sample) -> int:
    """Answers the rows of a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no new table; see the message. What was answered is kept.
    """
    rules = SamplingRules(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )
    limits = {name: check_count(name, getattr(options, name)) for name in _LIMITS}
    fields = parse_fields(options.field)
    rows = open_rows(options, fields)
    mesh = choose_mesh(options.mesh)
    model = load_model(options.model, dtype=options.dtype)
    sampler = Sampler(
        model,
        rules=rules,
        stop=options.stop,
        seed=options.seed,
        slots=options.slots,
        max_length=options.max_length,
        mesh=mesh,
    )
    encoder = make_prompt_encoder(
        model,
        max_new_tokens=options.max_new_tokens,
        layout=options.layout,
        truncation=options.truncation,
        max_length=options.max_length,
    )
    counts: Counter[str] = Counter()

    def encode(example: Example, row: int) -> list[Request]:
        return [encode_prompt(encoder, example, row)]

    def compute(
        chunks: Iterable[Chunk], headway: Headway, work: Work, show: Callable[[], None]
    ) -> Generator[SampledChunk, None, None]:
        def tell() -> None:
            work.useful = sampler.work.prompt_tokens + sampler.work.new_tokens
            show()

        return sample_chunks(
            sampler, chunks, **limits, score=options.score, headway=headway, on_progress=tell
        )

    job = TableJob(
        schema=SAMPLE_SCHEMA,
        metadata=describe_sampling(sampler, encoder, **limits, score=options.score),
        encode=encode,
        record=_record,
        count=counts.update,
        compute=compute,
        chunk_rows=SAMPLE_CHUNK_ROWS,
    )
    written = write_table(options, job, rows, model=model, encoder=encoder, fields=fields)
    if isinstance(written, int):
        return written
    ends = ", ".join(f"{counts[name]:,} {words}" for name, words in _ENDS.items() if counts[name])
    done = (
        f"{counts['responses']:,} responses, {counts['tokens']:,} tokens ({ends}) in {options.out}"
    )
    if counts["not_finite"]:
        done += f"; {counts['not_finite']:,} with log-probs that are not finite"
    if counts["empty"]:
        done += f"; {counts['empty']:,} without text, which as data would be rejected"
    show_end(done, written)
    return 0


_LIMITS = ("num_samples", "max_new_tokens")
_ENDS = {
    "stop_token": "ended by the model",
    "stop_string": "at a stop string",
    "length": "cut off at the limit",
}


def _record(chunk: SampledChunk) -> tuple[Records, dict[str, Any]]:
    counts = Counter(row.finish_reason for row in chunk.rows)
    counts["responses"] = len(chunk.rows)
    counts["tokens"] = sum(row.num_tokens for row in chunk.rows)
    counts["not_finite"] = sum("not_finite" in row.status for row in chunk.rows)
    counts["empty"] = sum(not row.text for row in chunk.rows)
    return map(to_sample_record, chunk.rows), dict(counts)
