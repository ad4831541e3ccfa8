"""`rank`: which of several given responses, and how sure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import Boundary, Truncation
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.normalize import calibrate, divide_by_length, subtract_premise
from instructjax.scoring.rank_plan import Plan, Waiting
from instructjax.scoring.rank_prompts import (
    CONTENT_FREE,
    Normalization,
    check_rank_options,
    describe_normalization,
    find_answer,
    make_variants,
)
from instructjax.scoring.ranking import RankedExample, Ranking
from instructjax.scoring.rows import ScoredRow
from instructjax.scoring.stream import Headway, OnError, score_rows

_ABSENT: Any = object()


def rank(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    normalization: Normalization = "sum",
    answers: Iterable[int | str | None] | None = None,
    premise: str | Example = "none",
    content_free: Sequence[str] = CONTENT_FREE,
    layout: str | Path = "user",
    include_eos: bool = True,
    boundary: Boundary = "exact",
    truncation: Truncation = "error",
    max_length: int | None = None,
    cache: str | Path | ScoreCache | None = None,
    progress: bool | None = None,
) -> Ranking:
    r"""Compares the candidates of every example: the posterior over them, and the best.

    The score of a candidate y is, by `normalization`,

    - `sum`: \(\log \Pr(y \mid c, z)\), nats;
    - `per_token`, `per_character`, `per_byte`: the same divided by y's tokens (the end-of-turn
      token is one), Unicode characters or UTF-8 bytes (it has none);
    - `pmi`: \(\log \Pr(y \mid c, z) - \log \Pr(y \mid \text{premise})\), Holtzman et al. 2021;
    - `calibrated`: \(\log(\hat p / \hat p_{cf})\), Zhao et al. 2021; see `calibrate`.

    The posterior is the softmax of the scores over the candidates: with `sum` it is Bayes' rule for
    candidates that are equally likely beforehand. Of equal scores the first candidate is the best,
    and `tie` says so.

    Args:
      model: from `load_model`.
      examples: one, or any iterable of them, each with at least two candidates as `output`.
      normalization: see above.
      answers: the right candidate of each example, by index from 0 or by text, or None where it is
        not known; by default the examples' own `answer`. A text that is no candidate and a
        whole number is an index.
      premise: for `pmi`, the prompt that y is compared under: what a context leaves of the
        example's own ("none", "c" or "z"), or an `Example` whose c, z, system turn and history
        are put in their place, such as `Example(instruction="The answer is:")`.
      content_free: for `calibrated`, what is put in the place of z.
      layout, include_eos, boundary, truncation, max_length, cache: as in `score`.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an unknown option, or not as many answers as examples.
      DataError: an example has fewer than two candidates, an answer is none of them, or it lacks
        what the normalization divides by or replaces.
      PromptError: an example cannot be encoded faithfully.

    For example, with the embedded model (which a first call downloads)::

        model = ij.load_model("smollm2-135m-instruct")
        example = ij.Example(instruction="Add.", input="1 + 1", output=["2", "3"], answer="2")
        ranking = ij.rank(model, example, normalization="calibrated")
        ranking[0].posterior, ranking[0].best, ranking.metrics.accuracy
    """
    check_rank_options(normalization, premise, content_free)
    encoder = make_encoder(
        model,
        layout=layout,
        include_eos=include_eos,
        boundary=boundary,
        truncation=truncation,
        max_length=max_length,
    )
    if isinstance(examples, Example):
        examples = (examples,)
    total = len(examples) if isinstance(examples, list | tuple) else None
    if answers is not None:
        examples = _with_answers(examples, answers)
    work = Work()
    opened = ScoreCache(cache, model) if isinstance(cache, str | Path) else nullcontext(cache)
    with opened as found, ScoringProgress(total, show=progress) as bar:
        ranked = rank_rows(
            model,
            examples,
            encoder=encoder,
            normalization=normalization,
            premise=premise,
            content_free=content_free,
            cache=found,
            work=work,
            on_progress=lambda done: bar.update(done, work.useful),
        )
        return Ranking(
            examples=tuple(ranked),
            metadata={
                **describe_run(model, encoder, ("cz",)),
                **describe_normalization(normalization, premise, content_free),
            },
        )


def rank_rows(
    model: Model,
    examples: Iterable[Example],
    *,
    encoder: PromptEncoder,
    normalization: Normalization = "sum",
    premise: str | Example = "none",
    content_free: Sequence[str] = CONTENT_FREE,
    on_error: OnError | None = None,
    cache: ScoreCache | None = None,
    headway: Headway | None = None,
    work: Work | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[RankedExample]:
    """Ranks a stream of examples in memory that does not grow with it, in the order of the input.

    Args:
      model: who scores.
      examples: any iterable; it is read ahead, in a thread of its own.
      encoder: the rules by which prompts are made.
      normalization, premise, content_free: see `rank`.
      on_error: called with each example that cannot be ranked and the reason, in the order of
        the input; without it the first such example raises.
      cache: scores of earlier runs to use again, and a place for new ones.
      headway, work: say how far the run is and what it computed, if given; to `headway` every
        prompt that candidates are scored under is a row.
      on_progress: called now and then with the number of examples that are done.

    Raises:
      DataError, PromptError: an example cannot be ranked, and there is no `on_error`.
    """
    check_rank_options(normalization, premise, content_free)
    headway = Headway() if headway is None else headway
    plan = Plan()

    def prompts() -> Iterator[Example]:
        for row, example in enumerate(examples):
            if not isinstance(example, Example):
                raise UsageError(
                    f"row {row + 1} is of type {type(example).__name__}, not an Example",
                    remedy="make Example(instruction=..., input=..., output=[...]) of it",
                )
            # The rows that `score_rows` counts are prompts, so a name must be given here.
            named = replace(example, id=example.id or f"row {row + 1}")
            try:
                answer = find_answer(named)
                variants = make_variants(named, normalization, premise, content_free)
            except DataError as error:
                if on_error is None:
                    raise
                plan.refuse(named, error)
                continue
            yield from plan.take(named, answer, variants)

    def finish_ready() -> Iterator[RankedExample]:
        while plan.waiting and plan.waiting[0].done:
            one = plan.waiting.popleft()
            try:
                if (error := one.error) is not None:
                    raise error
                ranked = _compare(one, normalization, model.tokenizer)
            except (DataError, PromptError) as error:
                if on_error is None:
                    raise
                on_error(one.example, error)
                continue
            yield ranked

    def tick() -> None:
        if on_progress is not None and plan.num_prompts:
            on_progress(plan.num_examples * headway.rows // plan.num_prompts)

    for row in score_rows(
        model,
        prompts(),
        encoder=encoder,
        on_error=None if on_error is None else plan.fail,
        cache=cache,
        headway=headway,
        work=work,
        on_progress=tick,
    ):
        plan.add(row)
        yield from finish_ready()
    yield from finish_ready()


def _compare(one: Waiting, normalization: str, tokenizer: Tokenizer) -> RankedExample:
    rows, example = one.own.rows or [], one.example
    log_prob = np.array([row.log_prob for row in rows], np.float64)
    counts = {
        "per_token": np.array([row.num_tokens for row in rows], np.int64),
        "per_byte": np.array([row.num_bytes for row in rows], np.int64),
        "per_character": np.array(
            [_count_characters(example, row, tokenizer) for row in rows], np.int64
        ),
    }
    if normalization in counts and not counts[normalization].all():
        raise DataError(
            f"candidate {counts[normalization].argmin() + 1} has no text, thus no length",
            row=example.id,
            remedy="choose the normalization sum or per_token",
        )
    others = np.array([other.log_probs for other in one.others], np.float64)
    with np.errstate(invalid="ignore"):  # -inf minus -inf: there is no number, and the row says so
        if normalization in counts:
            score = divide_by_length(log_prob, counts[normalization])
        elif normalization == "pmi":
            score = subtract_premise(log_prob, others[0])
        elif normalization == "calibrated":
            score = calibrate(log_prob, others)
        else:
            score = log_prob
    return RankedExample(
        id=example.id or "",
        instruction_id=example.instruction_id,
        input_id=example.input_id,
        task=example.task,
        log_prob=log_prob,
        num_tokens=counts["per_token"],
        num_bytes=counts["per_byte"],
        num_characters=counts["per_character"],
        greedy=np.array([row.greedy for row in rows], np.bool_),
        score=np.asarray(score),
        answer=one.answer,
        status=tuple(row.status for row in rows),
    )


def _count_characters(example: Example, row: ScoredRow, tokenizer: Tokenizer) -> int:
    """Characters of the y that was scored: without an end-of-turn token written behind it."""
    if example.outputs:
        data = example.outputs[row.candidate].encode()
    else:
        data = tokenizer.join_bytes([i for i in row.token_ids.tolist() if i < tokenizer.vocab_size])
    return len(data[: row.num_bytes].decode(errors="replace"))


def _with_answers(
    examples: Iterable[Example], answers: Iterable[int | str | None]
) -> Iterator[Example]:
    for example, answer in zip_longest(examples, answers, fillvalue=_ABSENT):
        if example is _ABSENT or answer is _ABSENT:
            raise UsageError(
                f"there are {'more' if example is _ABSENT else 'fewer'} answers than examples",
                remedy="give one answer an example, None where it is not known",
            )
        yield replace(example, answer=answer) if isinstance(example, Example) else example
