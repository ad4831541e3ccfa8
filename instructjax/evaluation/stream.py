"""Examples in, records of the evaluation table out: a stream of chunks, for one model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.data.text_hash import ids_hash, text_hash
from instructjax.errors import DataError, InstructJaxError, PromptError
from instructjax.evaluation.generate import generate
from instructjax.evaluation.metrics import IFEVAL, Case
from instructjax.evaluation.plan import (
    Plan,
    check_row,
    encode_example,
    find_constraints,
    find_references,
    name_example,
)
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.request import Request
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.ranking.ranked_example import RankedExample
from instructjax.scoring.ranking.stream import compare_candidates
from instructjax.scoring.rows import ScoredRow, check_example
from instructjax.scoring.runs.chunks import Failure, chunk_tokens, make_chunks
from instructjax.scoring.runs.stream import Headway, ScoredChunk, score_chunks

# Rows between two savings of a run that writes text, which takes seconds a row where scoring takes
# a fraction of one.
WRITTEN_ROWS = 64

FindPredictions = Callable[[Example, int], Sequence[str]]
NO_PREDICTIONS: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluatedChunk:
    """Rows `first` to `stop` of the input under one model.

    Attributes:
      first, stop: indices of the first row, and after the last.
      records: of the table, by example and within it by metric.
      rejects: rows that no model can be evaluated on, in order.
      failures: rows that this model gives nothing for, and why; they have records without values.
    """

    first: int
    stop: int
    records: list[dict[str, Any]]
    rejects: list[Reject | Failure]
    failures: list[Failure] = field(default_factory=list)


def evaluate_chunks(
    model: Model | None,
    name: str,
    rows: Iterable[Example | Reject],
    plan: Plan,
    *,
    encoder: PromptEncoder | None = None,
    predictions: FindPredictions | None = None,
    done: Mapping[int, int] | None = None,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Generator[EvaluatedChunk, None, None]:
    """Evaluates a stream of rows in memory that does not grow with it.

    Args:
      model: who is evaluated; None where predictions are given and no scores are asked for.
      name: what it is called in the table.
      rows: examples, and rejects in their places.
      plan: what is measured.
      encoder: the rules by which prompts are made, where there is a model.
      predictions: what the model wrote for an example, given its index; by default it writes now.
      done: chunks to pass over; see `make_chunks`.
      cache: scores of earlier runs to use again, and a place for new ones.
      headway, work: say how far the run is and what it computed, if given.
      on_progress: called now and then.
    """
    writes = plan.reads_text and predictions is None
    headway = Headway() if headway is None else headway
    failed: dict[int, Failure] = {}

    def encode(example: Example | Reject, row: int) -> list[Request] | Reject | Failure:
        if isinstance(example, Reject):
            return example
        check_example(example, row)
        try:
            check_row(example, row, plan)
        except DataError as error:
            return Failure(example=example, error=error)
        try:
            if model is not None and encoder is not None:
                return encode_example(model, encoder, example, row, plan)
        except (DataError, PromptError) as error:
            if encoder is not None and example.prompt_ids is None:
                encoder.check()
            failed[row] = Failure(example=example, error=error)
        return []

    chunks = make_chunks(
        rows,
        encode,
        done=done,
        tokens=None if model is None else chunk_tokens(model),
        most_rows=WRITTEN_ROWS if writes else None,
    )
    if model is not None and plan.reads_scores:
        scored: Iterable[ScoredChunk] = score_chunks(
            model, chunks, cache=cache, headway=headway, work=work, on_progress=on_progress
        )
    else:
        scored = (
            ScoredChunk(
                first=chunk.first,
                stop=chunk.stop,
                examples=[row.example for row in chunk.rows],
                indices=[row.row for row in chunk.rows],
                rows=[],
                failures=chunk.failures,
            )
            for chunk in chunks
        )
    for chunk in scored:
        texts: dict[int, Sequence[str]] = {}
        pairs = list(zip(chunk.indices, chunk.examples, strict=True))
        if writes and model is not None:
            able = [(row, example) for row, example in pairs if row not in failed]
            texts = _write(model, able, plan, failed)
        elif predictions is not None and plan.reads_text:
            texts = {row: predictions(example, row) for row, example in pairs}
        records: list[dict[str, Any]] = []
        by_row = {
            row: list(scores)
            for row, scores in groupby(chunk.rows, key=lambda one: one.scored.request.row)
        }
        for row, example in pairs:
            records += _record(model, name, example, row, plan, by_row, texts, failed.get(row))
        headway.rows = max(headway.rows, chunk.stop)
        if on_progress is not None:
            on_progress()
        yield EvaluatedChunk(
            first=chunk.first,
            stop=chunk.stop,
            records=records,
            rejects=list(chunk.failures),
            failures=[failed.pop(row) for row in chunk.indices if row in failed],
        )


def _write(
    model: Model, pairs: list[tuple[int, Example]], plan: Plan, failed: dict[int, Failure]
) -> dict[int, Sequence[str]]:
    """What the model writes for rows; those that it cannot write for go to `failed`."""
    if not pairs:
        return {}
    try:
        written = generate(model, [example for _, example in pairs], plan.generation)
        return {row: (text,) for (row, _), text in zip(pairs, written, strict=True)}
    except (DataError, PromptError) as error:
        if len(pairs) == 1:
            row, example = pairs[0]
            failed[row] = Failure(example=example, error=error)
            return {}
    half = len(pairs) // 2
    return _write(model, pairs[:half], plan, failed) | _write(model, pairs[half:], plan, failed)


def _record(
    model: Model | None,
    name: str,
    example: Example,
    row: int,
    plan: Plan,
    by_row: Mapping[int, list[ScoredRow]],
    texts: Mapping[int, Sequence[str]],
    failure: Failure | None,
) -> list[dict[str, Any]]:
    wanted = find_references(example, row)
    scores = by_row.get(row, [])
    case = Case(
        example=example,
        name=name_example(example, row),
        references=tuple(example.outputs[i] for i in wanted if i < len(example.outputs)),
        scores=tuple(one for one in scores if one.candidate in wanted),
        ranking=_rank(model, example, scores, plan),
        predictions=tuple(texts.get(row, NO_PREDICTIONS)),
        constraints=find_constraints(example, row, plan),
    )
    about = describe_example(example)
    records = []
    for metric in plan.metrics:
        if failure is not None:
            names = IFEVAL if metric.name == "ifeval" else (metric.name,)
            values = [(one, None, 0, _name_failure(failure.error)) for one in names]
        else:
            measured = metric.measure(case)
            values = [(one.metric, one.value, one.num_references, one.status) for one in measured]
        shown = plan.keep_predictions and metric.reads == "text" and case.predictions
        for one, value, count, status in values:
            records.append(
                {
                    "model": name,
                    "id": case.name,
                    "metric": one,
                    "value": value,
                    **about,
                    "num_references": count,
                    "prediction": case.predictions[0] if shown else None,
                    "status": status,
                }
            )
    return records


def _rank(
    model: Model | None, example: Example, scores: list[ScoredRow], plan: Plan
) -> RankedExample | None:
    if model is None or not plan.asks("rank_accuracy") or len(scores) < 2:
        return None
    if example.answer is None:
        return None
    return compare_candidates(example, scores, plan.rank_options, model.tokenizer)


def _name_failure(error: InstructJaxError) -> str:
    return "cannot_be_encoded" if isinstance(error, PromptError) else "cannot_be_used"


def describe_example(example: Example) -> dict[str, Any]:
    """The columns that name an example, and identify its c and z by their texts.

    >>> describe_example(Example(instruction="Add.", task="sums"))["task"]
    'sums'
    """
    cell = example.extra.get("cell")
    ids = example.prompt_ids
    return {
        "instruction_id": example.instruction_id,
        "input_id": example.input_id,
        "task": example.task,
        "category": example.category,
        "cell": None if cell is None else str(cell),
        "instruction_hash": text_hash(example.instruction) if ids is None else None,
        "input_hash": text_hash(example.input) if ids is None else ids_hash(map(int, ids)),
    }
