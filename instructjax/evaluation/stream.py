"""Examples in, records of the evaluation table out: a stream of chunks, for one model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.data.text_hash import ids_hash, text_hash
from instructjax.errors import DataError, InstructJaxError, PromptError, UsageError
from instructjax.evaluation.generate import generate
from instructjax.evaluation.metrics import Case, Metric, Value, columns_of
from instructjax.evaluation.plan import (
    Plan,
    check_row,
    encode_example,
    find_constraints,
    find_references,
    name_example,
)
from instructjax.evaluation.written import Written, join_flags
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

FindPredictions = Callable[[Example, int], Sequence[Written]]


@dataclass(frozen=True, kw_only=True)
class EvaluatedChunk:
    """Rows `first` to `stop` of the input under one model.

    Attributes:
      first, stop: indices of the first row, and after the last.
      records: of the table, by example and within it by metric.
      rejects: rows that no model can be evaluated on, in order.
      failures: rows that this model gives nothing for, and why; they have records without values.
      metric_failures: by metric, rows that it failed on, and how; they have no value of it.
      written: what the model wrote, by the row's index.
    """

    first: int
    stop: int
    records: list[dict[str, Any]]
    rejects: list[Reject | Failure]
    failures: list[Failure] = field(default_factory=list)
    metric_failures: dict[str, list[Failure]] = field(default_factory=dict)
    written: dict[int, Written] = field(default_factory=dict)


def evaluate_chunks(
    model: Model | None,
    name: str,
    rows: Iterable[Example | Reject],
    plan: Plan,
    *,
    encoder: PromptEncoder | None = None,
    predictions: FindPredictions | None = None,
    written: Mapping[int, Written] | None = None,
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
      written: what it wrote in an earlier run, by the row's index, and need not write again.
      done: chunks to pass over; see `make_chunks`.
      cache: scores of earlier runs to use again, and a place for new ones.
      headway, work: say how far the run is and what it computed, if given. Where the model writes,
        a row is done when it is written.
      on_progress: called now and then.
    """
    writes = plan.reads_text and predictions is None
    headway = Headway() if headway is None else headway
    work = Work() if work is None else work
    writing = _Writing(headway=headway, work=work, on_progress=on_progress)
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
            model,
            chunks,
            cache=cache,
            headway=Headway() if writes else headway,
            work=work,
            on_progress=on_progress,
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
    known = written or {}
    for chunk in scored:
        pairs = list(zip(chunk.indices, chunk.examples, strict=True))
        made: dict[int, Written] = {}
        unwritten: dict[int, Failure] = {}
        if writes and model is not None:
            made = {row: known[row] for row in chunk.indices if row in known}
            able = [pair for pair in pairs if pair[0] not in failed and pair[0] not in made]
            writing.begin(chunk.stop - chunk.first, len(able))
            made |= _write(model, able, plan, unwritten, writing)
        texts: dict[int, Sequence[Written]] = {row: (text,) for row, text in made.items()}
        if predictions is not None and plan.reads_text:
            texts = {row: predictions(example, row) for row, example in pairs}
        records: list[dict[str, Any]] = []
        metric_failures: dict[str, list[Failure]] = {}
        by_row = {
            row: list(scores)
            for row, scores in groupby(chunk.rows, key=lambda one: one.scored.request.row)
        }
        for row, example in pairs:
            records += _record(
                model,
                name,
                example,
                row,
                plan,
                by_row,
                texts.get(row, ()),
                failed.get(row),
                unwritten.get(row),
                metric_failures,
            )
        if writes:
            writing.end()
        elif not plan.reads_scores:
            headway.rows += chunk.stop - chunk.first
        if on_progress is not None:
            on_progress()
        yield EvaluatedChunk(
            first=chunk.first,
            stop=chunk.stop,
            records=records,
            rejects=list(chunk.failures),
            failures=[
                failed.pop(row) if row in failed else unwritten[row]
                for row in chunk.indices
                if row in failed or row in unwritten
            ],
            metric_failures=metric_failures,
            written=made,
        )


@dataclass(kw_only=True)
class _Writing:
    """Tells of rows of a chunk as they are written; others of its rows go along with them."""

    headway: Headway
    work: Work
    on_progress: Callable[[], None] | None
    _before: int = 0
    _size: int = 0
    _able: int = 0
    _rows: int = 0

    def begin(self, size: int, able: int) -> None:
        self._before, self._size, self._able, self._rows = self.headway.rows, size, able, 0
        self._tell()

    def add_tokens(self, count: int) -> None:
        self.work.useful += count
        self._tell()

    def add_row(self) -> None:
        self._rows += 1
        self.headway.rows = self._before + self._size * self._rows // self._able
        self._tell()

    def end(self) -> None:
        self.headway.rows = self._before + self._size

    def _tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress()


def _write(
    model: Model,
    pairs: list[tuple[int, Example]],
    plan: Plan,
    failed: dict[int, Failure],
    writing: _Writing,
) -> dict[int, Written]:
    """What the model writes for rows; those that it cannot write for go to `failed`."""
    if not pairs:
        return {}
    try:
        written = generate(
            model, pairs, plan.generation, on_tokens=writing.add_tokens, on_row=writing.add_row
        )
        return {row: text for (row, _), text in zip(pairs, written, strict=True)}
    except (DataError, PromptError) as error:
        if len(pairs) == 1:
            row, example = pairs[0]
            failed[row] = Failure(example=example, error=error)
            return {}
    half = len(pairs) // 2
    first = _write(model, pairs[:half], plan, failed, writing)
    return first | _write(model, pairs[half:], plan, failed, writing)


def _record(
    model: Model | None,
    name: str,
    example: Example,
    row: int,
    plan: Plan,
    by_row: Mapping[int, list[ScoredRow]],
    written: Sequence[Written],
    failure: Failure | None,
    unwritten: Failure | None,
    metric_failures: dict[str, list[Failure]],
) -> list[dict[str, Any]]:
    wanted = find_references(example, row)
    scores = by_row.get(row, [])
    case = Case(
        example=example,
        name=name_example(example, row),
        references=tuple(example.outputs[i] for i in wanted if i < len(example.outputs)),
        scores=tuple(one for one in scores if one.candidate in wanted),
        ranking=_rank(model, example, scores, plan),
        predictions=tuple(one.text for one in written),
        flags=join_flags(written),
        constraints=find_constraints(example, row, plan),
    )
    about = describe_example(example)
    records = []
    for metric in plan.metrics:
        lacking = failure or (unwritten if metric.reads == "text" else None)
        if lacking is not None:
            status = _name_failure(lacking.error)
            values = [
                Value(metric=one, value=None, num_references=0, status=status)
                for one in columns_of(metric)
            ]
        else:
            values, error = measure(metric, case)
            if error is not None:
                failures = metric_failures.setdefault(metric.name, [])
                failures.append(Failure(example=example, error=error))
        shown = plan.keep_predictions and metric.reads == "text" and case.predictions
        for one in values:
            records.append(
                {
                    "model": name,
                    "id": case.name,
                    "metric": one.metric,
                    "value": one.value,
                    **about,
                    "num_references": one.num_references,
                    "prediction": case.predictions[0] if shown else None,
                    "status": one.status,
                }
            )
    return records


def measure(metric: Metric, case: Case) -> tuple[list[Value], DataError | None]:
    """The values of a case, with the flags of the text that was read; and why there are none.

    Text of a model that gave no number for it has no value.
    """
    error, count = None, len(case.references)
    try:
        values = metric.measure(case)
    except UsageError:
        raise
    except Exception as found:
        if isinstance(found, DataError):
            error, cause = found, found.__cause__
        else:
            reason = f"the metric {metric.name} failed ({type(found).__name__}: {found})"
            error, cause = DataError(reason, row=case.name), found
        status = "failed" if cause is None else f"failed={type(cause).__name__}"
        values = [
            Value(metric=one, value=None, num_references=count, status=status)
            for one in columns_of(metric)
        ]
    if metric.reads != "text" or not case.flags:
        return values, error
    finite = all(flag.partition("=")[0] != "not_finite" for flag in case.flags)
    return [
        Value(
            metric=one.metric,
            value=one.value if finite else None,
            num_references=one.num_references,
            status=",".join([*([] if one.status == "ok" else [one.status]), *case.flags]),
        )
        for one in values
    ], error


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
