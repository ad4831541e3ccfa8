"""`score`: examples in, exact log-probabilities out, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import Boundary, PromptOptions, Truncation, Turns
from instructjax.scoring.cache import ScoreCache, open_cache
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.result import Scores
from instructjax.scoring.rows import list_examples, parse_contexts
from instructjax.scoring.runs.stream import Headway, score_rows

# Of the likeliest tokens in each place: more would be the whole distribution of most vocabularies,
# and gigabytes for each packed row.
TOP_K_LIMIT = 1024


def score(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    layout: str | Path = "user",
    include_eos: bool = True,
    contexts: str | Iterable[str] = ("cz",),
    boundary: Boundary = "exact",
    truncation: Truncation = "error",
    max_length: int | None = None,
    turns: Turns = "last",
    top_k: int = 0,
    cache: str | Path | ScoreCache | None = None,
    progress: bool | None = None,
) -> Scores:
    """log Pr(y | c, z) of every candidate y of every example, in nats.

    Rows come in the order of the input: by example, within it by candidate y, within that by
    context. All results are kept in memory; for a stream use `score_rows` or the command line.

    Args:
      model: from `load_model`.
      examples: one, or any iterable of them.
      layout: where c and z go: "user", "system", "plain", "alpaca", "raw" or a .jinja file.
      include_eos: whether y ends with the end-of-turn token; only then is Pr(y | c, z) a
        distribution over finite strings.
      contexts: what of c and z the prompt holds, any of "cz", "c", "z", "none".
      boundary: "exact" (prompt and y are encoded each on its own) or "joint" (as one string).
      truncation: of prompts that are too long: "error", "left" or "middle".
      max_length: tokens of prompt and y together; by default all that the model takes.
      turns: score the "last" assistant turn, or "all".
      top_k: how many of the likeliest tokens to keep in each token's place.
      cache: a folder of scores to use again (see `ScoreCache`), to which new ones are added.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an unknown option, what are no examples, or a cache of another model.
      DataError: an example has no response, or neither instruction nor input.
      PromptError: an example cannot be encoded faithfully, or is longer than `max_length`.
        Both name the example by its id or its number.

    For example, with the embedded model (which a first call downloads)::

        model = ij.load_model("smollm2-135m-instruct")
        ij.score(model, ij.Example(instruction="Add.", input="1 + 1", output=["2", "3"]))
    """
    contexts = parse_contexts(contexts)
    check_top_k(top_k, model)
    encoder = make_encoder(
        model,
        layout=layout,
        include_eos=include_eos,
        boundary=boundary,
        truncation=truncation,
        max_length=max_length,
        turns=turns,
    )
    examples = list_examples(examples)
    total = len(examples) if isinstance(examples, list | tuple) else None
    headway, work = Headway(), Work()
    with open_cache(cache, model) as found, ScoringProgress(total, show=progress) as bar:
        rows = score_rows(
            model,
            examples,
            encoder=encoder,
            contexts=contexts,
            top_k=top_k,
            cache=found,
            headway=headway,
            work=work,
            on_progress=lambda: bar.update(headway.rows, work.useful),
        )
        return Scores(
            rows=tuple(rows),
            tokenizer=model.tokenizer,
            metadata=describe_run(model, encoder, contexts),
        )


def make_encoder(model: Model, *, max_length: int | None = None, **options: Any) -> PromptEncoder:
    """The encoder of a model's prompts, with its longest sequence as the limit.

    Args:
      model: whose tokenizer, vocabulary and context length count.
      max_length: tokens of prompt and y together; by default all that the model takes.
      **options: the others of `PromptOptions`.

    Raises:
      UsageError: an unknown option, or a `max_length` that the model does not take.
    """
    check_max_length(model, max_length)
    longest = model.config.max_positions
    return PromptEncoder(
        model.tokenizer,
        PromptOptions(max_length=longest if max_length is None else max_length, **options),
        vocab_size=model.config.vocab_size,
        max_positions=longest,
    )


def check_max_length(model: Model, max_length: int | None) -> None:
    """See that the model takes so many tokens; raises a UsageError if not."""
    longest = model.config.max_positions
    if isinstance(max_length, int) and max_length > longest:
        raise UsageError(
            f"max_length is {max_length}, and the model takes {longest} tokens at most",
            remedy=f"give {longest} or less",
        )


def check_top_k(top_k: object, model: Model | None = None) -> None:
    """See that there are so many tokens to keep in each place; raises a UsageError if not.

    Args:
      top_k: a number from 0.
      model: whose vocabulary it may not exceed; while there is none, `TOP_K_LIMIT`.
    """
    size = TOP_K_LIMIT if model is None else min(model.config.vocab_size, TOP_K_LIMIT)
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 0 <= top_k <= size:
        raise UsageError(f"top_k is {top_k}", remedy=f"give a number from 0 to {size:,}")
