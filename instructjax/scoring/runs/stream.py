"""Examples in, scored rows out: a stream from the first file to the last number."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from instructjax.data.example import Example
from instructjax.data.rejects import Reject
from instructjax.errors import DataError, InstructJaxError, PromptError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.request import Request
from instructjax.scoring.cache import ScoreCache, score_cached
from instructjax.scoring.engine import ScoredRequest, Work, score_requests
from instructjax.scoring.rows import ScoredRow, check_example, encode_row
from instructjax.scoring.runs.ahead import run_ahead
from instructjax.scoring.runs.chunks import Chunk, EncodedRow, Failure, chunk_tokens, make_chunks

OnError = Callable[[Example, InstructJaxError], None]


@dataclass(kw_only=True)
class Headway:
    """How far a run is.

    Attributes:
      rows: of the input that are done, rejected ones counted.
      seconds: since the first chunk was asked for.
      waited: seconds of these in which no row was with the model, because rows had to be read,
        encoded or written first.
    """

    rows: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the device waited for the host."""
        return self.waited / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredChunk:
    """Rows `first` to `stop` of the input: their scores, and those that have none.

    Attributes:
      first, stop: indices of the first row, and after the last.
      examples: those that have scores, in order.
      indices: of these in the input.
      rows: the scores, one a request.
      failures: the examples that have none, in order.
    """

    first: int
    stop: int
    examples: list[Example]
    indices: list[int]
    rows: list[ScoredRow]
    failures: list[Reject | Failure]


def score_rows(
    model: Model,
    examples: Iterable[Example],
    *,
    encoder: PromptEncoder,
    contexts: Sequence[str] = ("cz",),
    top_k: int = 0,
    on_error: OnError | None = None,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[ScoredRow]:
    """Scores a stream of examples in memory that does not grow with it.

    Rows come in the order of the input: by example, within it by candidate, within that by
    context. An example that cannot be encoded under one of the contexts has no row at all.

    Args:
      model: who scores.
      examples: any iterable; it is read ahead, in a thread of its own.
      encoder: the rules by which prompts are made.
      contexts: which of c and z the prompts hold.
      top_k: how many best alternatives to keep a token.
      on_error: called with each example that cannot be scored and the reason, in the order of
        the input; without it the first such example raises.
      cache: scores of earlier runs to use again, and a place for new ones.
      headway, work: say how far the run is and what it computed, if given.
      on_progress: called now and then while the model works.

    Raises:
      DataError, PromptError: an example cannot be scored, and there is no `on_error`.
    """

    for chunk in score_examples(
        model,
        examples,
        lambda example, row: encode_row(model, encoder, example, row, contexts),
        top_k=top_k,
        on_error=on_error,
        cache=cache,
        headway=headway,
        work=work,
        on_progress=on_progress,
    ):
        yield from chunk.rows


def score_examples(
    model: Model,
    examples: Iterable[Example],
    encode: Callable[[Example, int], list[Request]],
    *,
    top_k: int = 0,
    on_error: OnError | None = None,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[ScoredChunk]:
    """Scores the requests that `encode` makes of each example, in chunks; see `score_rows`."""

    def try_encode(example: Any, row: int) -> list[Request] | Failure:
        check_example(example, row)
        try:
            return encode(example, row)
        except (DataError, PromptError) as error:
            if on_error is None:
                raise
            return Failure(example=example, error=error)

    for chunk in score_chunks(
        model,
        make_chunks(examples, try_encode, tokens=chunk_tokens(model), top_k=top_k),
        top_k=top_k,
        cache=cache,
        headway=headway,
        work=work,
        on_progress=on_progress,
    ):
        for failure in chunk.failures:
            if on_error is not None and isinstance(failure, Failure):
                on_error(failure.example, failure.error)
        yield chunk


def score_chunks(
    model: Model,
    chunks: Iterable[Chunk],
    *,
    top_k: int = 0,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Generator[ScoredChunk, None, None]:
    """Scores chunks one after the other while a thread makes the next; see `score_rows`."""
    headway = Headway() if headway is None else headway
    start = idle_since = time.perf_counter()
    ahead = run_ahead(chunks)
    try:
        for chunk in ahead:
            headway.waited += time.perf_counter() - idle_since
            rows = _score_chunk(model, chunk, top_k, cache, headway, work, on_progress)
            idle_since = time.perf_counter()
            yield ScoredChunk(
                first=chunk.first,
                stop=chunk.stop,
                examples=[row.example for row in chunk.rows],
                indices=[row.row for row in chunk.rows],
                rows=rows,
                failures=chunk.failures,
            )
        headway.waited += time.perf_counter() - idle_since
    finally:
        headway.seconds += time.perf_counter() - start
        ahead.close()


def _score_chunk(
    model: Model,
    chunk: Chunk,
    top_k: int,
    cache: ScoreCache | None,
    headway: Headway,
    work: Work | None,
    on_progress: Callable[[], None] | None,
) -> list[ScoredRow]:
    requests = [request for row in chunk.rows for request in row.requests]
    before, done = headway.rows, 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        headway.rows = before + (chunk.stop - chunk.first) * done // len(requests)
        if on_progress is not None:
            on_progress()

    if cache is None:
        scored = score_requests(model, requests, top_k=top_k, work=work, on_row=tick)
    else:
        scored = score_cached(model, requests, cache, top_k=top_k, work=work, on_row=tick)
    asked = [row for row in chunk.rows for _ in row.requests]
    # To its end, where an interrupt is heard: not as python drops an iterator that is left.
    rows = [_name(row, one) for row, one in zip(asked, scored, strict=True)]
    headway.rows = before + chunk.stop - chunk.first
    return rows


def _name(row: EncodedRow, scored: ScoredRequest) -> ScoredRow:
    example = row.example
    return ScoredRow(
        id=example.id or f"row {row.row + 1}",
        instruction_id=example.instruction_id,
        input_id=example.input_id,
        task=example.task,
        scored=scored,
    )
