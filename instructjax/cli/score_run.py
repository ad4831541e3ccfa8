"""`instructjax score`: from a data file to a score table."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from instructjax.cli.score import Score
from instructjax.cli.score_summary import Counts, show_summary
from instructjax.cli.table_run import Records, TableJob, open_rows, write_table
from instructjax.data.fields import parse_fields
from instructjax.models import load_model
from instructjax.prompts import PromptOptions
from instructjax.scoring.api import check_top_k, make_encoder
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.rows import encode_row, parse_contexts
from instructjax.scoring.runs.stream import ScoredChunk
from instructjax.scoring.tables.table import DETAILS, SCHEMA, to_record
from instructjax.sharding import choose_mesh


def run_score(options: Score) -> int:
    """Scores a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no new table; see the message. What was scored is kept.
    """
    contexts = parse_contexts(options.contexts)
    prompt_options = {**options.prompt_options(), "turns": options.turns}
    PromptOptions(**prompt_options)
    check_top_k(options.top_k or 0)
    fields = parse_fields(options.field)
    rows = open_rows(options, fields)
    model = load_model(options.model, dtype=options.dtype, mesh=choose_mesh(options.mesh))
    check_top_k(options.top_k or 0, model)
    encoder = make_encoder(model, **prompt_options)
    counts = Counts()
    details = options.top_k is not None
    job = TableJob(
        schema=pa.schema([*SCHEMA, *DETAILS]) if details else SCHEMA,
        metadata={
            **describe_run(model, encoder, contexts),
            **({"top_k": str(options.top_k)} if details else {}),
        },
        encode=lambda example, row: encode_row(model, encoder, example, row, contexts),
        record=partial(_record, details=details),
        count=lambda more: counts.merge(Counts.from_json(more)),
        top_k=options.top_k or 0,
    )
    written = write_table(options, job, rows, model=model, encoder=encoder, fields=fields)
    if isinstance(written, int):
        return written
    show_summary(counts, written, options.out)
    return 0


def _record(chunk: ScoredChunk, *, details: bool) -> tuple[Records, dict[str, Any]]:
    counts = Counts()
    for row in chunk.rows:
        counts.add(row)
    return map(partial(to_record, details=details), chunk.rows), counts.to_json()
