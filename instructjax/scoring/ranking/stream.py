"""Examples in, ranked examples out: a stream over the same chunks as scores are made in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.ranking.normalize import calibrate, divide_by_length, subtract_premise
from instructjax.scoring.ranking.options import RankOptions
from instructjax.scoring.ranking.prompts import count_candidates, encode_candidates, find_answer
from instructjax.scoring.ranking.ranked_example import RankedExample
from instructjax.scoring.rows import ScoredRow
from instructjax.scoring.runs.stream import Headway, OnError, ScoredChunk, score_examples


def rank_rows(
    model: Model,
    examples: Iterable[Example],
    *,
    encoder: PromptEncoder,
    options: RankOptions | None = None,
    on_error: OnError | None = None,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[RankedExample]:
    """Ranks a stream of examples in memory that does not grow with it, in the order of the input.

    All that a chunk of examples needs, premises and inputs without content too, is scored
    together, so that what prompts share is computed once.

    Args:
      model: who scores.
      examples: any iterable; it is read ahead, in a thread of its own.
      encoder: the rules by which prompts are made.
      options: what candidates are compared by; by default log Pr.
      on_error: called with each example that cannot be ranked and the reason, in the order of
        the input; without it the first such example raises.
      cache: scores of earlier runs to use again, and a place for new ones.
      headway, work: say how far the run is and what it computed, if given.
      on_progress: called now and then while the model works.

    Raises:
      UsageError: the encoder scores earlier turns too, which are no part of a candidate.
      DataError, PromptError: an example cannot be ranked, and there is no `on_error`.
    """
    how = options or RankOptions()
    check_turns(encoder)

    for chunk in score_examples(
        model,
        examples,
        lambda example, row: encode_candidates(model, encoder, example, row, how),
        on_error=on_error,
        cache=cache,
        headway=headway,
        work=work,
        on_progress=on_progress,
    ):
        yield from compare_chunk(chunk, how, model.tokenizer)


def check_turns(encoder: PromptEncoder) -> None:
    """Raises a UsageError if more than the candidates would be scored."""
    if encoder.options.turns != "last":
        raise UsageError(
            f"the encoder scores {encoder.options.turns} turns, and candidates are the last one",
            remedy='set turns to "last"',
        )


def compare_chunk(
    chunk: ScoredChunk, options: RankOptions, tokenizer: Tokenizer
) -> Iterator[RankedExample]:
    """The examples of a chunk that was encoded by `encode_candidates`, compared."""
    rows = groupby(chunk.rows, key=lambda row: row.scored.request.row)
    for example, (_, scores) in zip(chunk.examples, rows, strict=True):
        yield compare_candidates(example, list(scores), options, tokenizer)


def compare_candidates(
    example: Example, scores: list[ScoredRow], options: RankOptions, tokenizer: Tokenizer
) -> RankedExample:
    """One example ranked.

    Args:
      example: with K candidates.
      scores: of the K candidates under its own prompt, then under each other one.
      options: what they are compared by.
      tokenizer: to count the characters of candidates that are given as ids.
    """
    count = count_candidates(example)
    own, others = scores[:count], scores[count:]
    log_prob = np.array([row.log_prob for row in own], np.float64)
    other = np.array([row.log_prob for row in others], np.float64).reshape(-1, count)
    lengths = {
        "per_token": np.array([row.num_tokens for row in own], np.int64),
        "per_byte": np.array([row.num_bytes for row in own], np.int64),
        "per_character": np.array([_count_characters(example, row, tokenizer) for row in own]),
    }
    with np.errstate(invalid="ignore"):  # -inf minus -inf: there is no number, and the row says so
        if options.normalization in lengths:
            score = divide_by_length(log_prob, lengths[options.normalization])
        elif options.normalization == "pmi":
            score = subtract_premise(log_prob, other[0])
        elif options.normalization == "calibrated":
            score = calibrate(log_prob, other)
        else:
            score = log_prob
    return RankedExample(
        id=own[0].id,
        instruction_id=example.instruction_id,
        input_id=example.input_id,
        task=example.task,
        log_prob=log_prob,
        num_tokens=lengths["per_token"],
        num_bytes=lengths["per_byte"],
        num_characters=lengths["per_character"],
        greedy=np.array([row.greedy for row in own], np.bool_),
        score=np.asarray(score),
        answer=find_answer(example, own[0].scored.request.row),
        status=tuple(_join_status(scores[k::count]) for k in range(count)),
    )


def _count_characters(example: Example, row: ScoredRow, tokenizer: Tokenizer) -> int:
    """Characters of the y that was scored: without an end-of-turn token written behind it."""
    if example.outputs:
        data = example.outputs[row.candidate].encode()
    else:
        data = tokenizer.join_bytes([i for i in row.token_ids.tolist() if i < tokenizer.vocab_size])
    return len(data[: row.num_bytes].decode(errors="replace"))


def _join_status(rows: list[ScoredRow]) -> str:
    """What is to be known of a candidate under any of its prompts."""
    flags = dict.fromkeys(flag for row in rows for flag in row.status.split(",") if flag != "ok")
    return ",".join(flags) or "ok"
