"""`rank`: which of several given responses, and how sure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import Boundary, Truncation
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache, open_cache
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.ranking.options import CONTENT_FREE, Normalization, RankOptions
from instructjax.scoring.ranking.result import Ranking
from instructjax.scoring.ranking.stream import rank_rows
from instructjax.scoring.rows import list_examples
from instructjax.scoring.runs.stream import Headway

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
      examples: one, or any iterable of them, each with at least two different candidates as
        `output`.
      normalization: see above.
      answers: the right candidate of each example, by index from 0 or by text, or None where it is
        not known; by default the examples' own `answer`. A text of digits that is no candidate is
        an index.
      premise: for `pmi`, the prompt that y is compared under: what a context leaves of the
        example's own ("none", "c" or "z"; system turn and history stay), or an `Example` whose
        c, z, system turn and history are put in their place, such as
        `Example(instruction="The answer is:")`.
      content_free: for `calibrated`, what is put in the place of z.
      layout, include_eos, boundary, truncation, max_length, cache: as in `score`.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an unknown option, not as many answers as examples, or a cache of another
        model.
      DataError: an example has fewer than two candidates, two that are the same, an answer that is
        none of them, or not what the normalization divides by or replaces.
      PromptError: an example cannot be encoded faithfully.

    For example, with the embedded model (which a first call downloads)::

        model = ij.load_model("smollm2-135m-instruct")
        example = ij.Example(instruction="Add.", input="1 + 1", output=["2", "3"], answer="2")
        ranking = ij.rank(model, example, normalization="calibrated")
        ranking[0].posterior, ranking[0].best, ranking.metrics.accuracy
    """
    options = RankOptions(normalization=normalization, premise=premise, content_free=content_free)
    encoder = make_encoder(
        model,
        layout=layout,
        include_eos=include_eos,
        boundary=boundary,
        truncation=truncation,
        max_length=max_length,
    )
    examples = list_examples(examples)
    total = len(examples) if isinstance(examples, list | tuple) else None
    if answers is not None:
        if isinstance(answers, str | Mapping) or not isinstance(answers, Iterable):
            raise UsageError(
                f"answers are of type {type(answers).__name__}",
                remedy="give a list of one answer an example",
            )
        examples = _with_answers(examples, answers)
    headway, work = Headway(), Work()
    with open_cache(cache, model) as found, ScoringProgress(total, show=progress) as bar:
        ranked = rank_rows(
            model,
            examples,
            encoder=encoder,
            options=options,
            cache=found,
            headway=headway,
            work=work,
            on_progress=lambda: bar.update(headway.rows, work.useful),
        )
        return Ranking(
            examples=tuple(ranked),
            metadata={**describe_run(model, encoder, ("cz",)), **options.describe()},
        )


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
