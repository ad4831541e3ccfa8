"""`kl_divergence`: how much a model, a prompt or a part of it changes what is predicted of y."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax.data.example import Example
from instructjax.errors import DataError, ModelError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import Boundary, Truncation
from instructjax.prompts.request import Request
from instructjax.scoring.api import make_encoder
from instructjax.scoring.compare.divergence import hidden_divergences
from instructjax.scoring.compare.result import DivergedRow, Divergences
from instructjax.scoring.hidden import cut_windows, hidden_before_targets, output_table
from instructjax.scoring.rows import check_example, encode_row, list_examples, parse_contexts
from instructjax.scoring.vocabulary import make_blocks

_hidden_divergences = jax.jit(hidden_divergences)
_ABSENT: Any = object()


def kl_divergence(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    model_q: Model | None = None,
    examples_q: Example | Iterable[Example] | None = None,
    context: str = "cz",
    context_q: str | None = None,
    layout: str | Path = "user",
    include_eos: bool = True,
    boundary: Boundary = "exact",
    truncation: Truncation = "error",
    max_length: int | None = None,
) -> Divergences:
    r"""\(KL(p \| q)\) of the next-token distributions before every token of y.

    p is Pr(. | c, z, y_<t) of `model`. q is the same under another condition: of another model of
    the same vocabulary, after another prompt, after a context with less in it, or several of
    these. Where y was drawn from p, the sum over its tokens is an unbiased estimate of the
    divergence of the distributions over whole responses (the chain rule for relative entropy; Cover
    and Thomas 2006, section 2.5).

    Args:
      model: whose distribution p is.
      examples: with the prompts of p, and y.
      model_q: whose distribution q is; by default the same model.
      examples_q: one an example, with the same y and the prompts of q; by default the same.
      context, context_q: what of c and z the prompts of p and of q hold; `context_q` is `context`
        by default.
      layout, include_eos, boundary, truncation, max_length: as in `score`.

    Returns:
      A row for each y, with a number for each of its tokens.

    Raises:
      UsageError: an unknown option, what are no examples, or not as many `examples_q` as examples.
      ModelError: the models have different vocabularies.
      DataError: the two sides have different y.
      PromptError: an example cannot be encoded faithfully.

    What the input contributes to the prediction of each token::

        ij.kl_divergence(model, examples, context="cz", context_q="c").mean_kl
    """
    (context,) = parse_contexts([context])
    (context_q,) = parse_contexts([context if context_q is None else context_q])
    other = model if model_q is None else model_q
    check_same_vocabulary(model, other)
    examples = list_examples(examples)
    if examples_q is not None:
        examples_q = list_examples(examples_q, "examples_q")
    options: dict[str, Any] = {
        "layout": layout,
        "include_eos": include_eos,
        "boundary": boundary,
        "truncation": truncation,
        "max_length": max_length,
    }
    encoder, encoder_q = make_encoder(model, **options), make_encoder(other, **options)

    def encode() -> Iterator[_Pair]:
        for row, (p, q) in enumerate(_match_examples(examples, examples_q)):
            requests = encode_row(model, encoder, p, row, (context,))
            requests_q = encode_row(other, encoder_q, q, row, (context_q,))
            name = p.id or f"row {row + 1}"
            _check_same_responses(requests, requests_q, name)
            for request, request_q in zip(requests, requests_q, strict=True):
                yield _Pair(name=name, p=request, q=request_q)

    windows = cut_windows(encode(), lambda pair: pair.p.num_tokens)
    return Divergences(rows=tuple(chain.from_iterable(_diverge(model, other, w) for w in windows)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pair:
    """One y under the two conditions."""

    name: str
    p: Request
    q: Request


def _diverge(model: Model, other: Model, window: list[_Pair]) -> Iterator[DivergedRow]:
    p, q = [pair.p for pair in window], [pair.q for pair in window]
    if model is other:
        both = hidden_before_targets(model, [*p, *q])  # what the conditions share is computed once
        states, states_q = both[: len(p)], both[len(p) :]
    else:
        states, states_q = hidden_before_targets(model, p), hidden_before_targets(other, q)
    tables = output_table(model), output_table(other)
    caps = model.config.logit_softcap, other.config.logit_softcap
    found = []
    for count, (h, h_q) in make_blocks(np.concatenate(states), np.concatenate(states_q)):
        divergences = jax.device_get(_hidden_divergences(h, tables[0], h_q, tables[1], *caps))
        found.append(np.stack(divergences)[:, :count])
    stops = np.cumsum([request.num_tokens for request in p])[:-1]
    by_row = np.split(np.concatenate(found, axis=1), stops, axis=1)
    for pair, (kl, js) in zip(window, by_row, strict=True):
        yield DivergedRow(
            id=pair.name,
            candidate=pair.p.candidate,
            token_ids=pair.p.target_ids,
            kl=kl,
            js=js,
            flags=tuple(dict.fromkeys((*pair.p.flags, *pair.q.flags))),
        )


def check_same_vocabulary(p: Model, q: Model) -> None:
    """Raises a ModelError unless every id means the same to both models."""
    same = p.config.vocab_size == q.config.vocab_size
    if same and p.tokenizer.fingerprint != q.tokenizer.fingerprint:
        sizes = p.tokenizer.vocab_size, q.tokenizer.vocab_size
        same = sizes[0] == sizes[1] and all(
            p.tokenizer.token_bytes(i) == q.tokenizer.token_bytes(i) for i in range(sizes[0])
        )
    if not same:
        raise ModelError(
            f"{p.name} and {q.name} have different vocabularies, so their distributions are over "
            "different things",
            remedy="compare models that share a tokenizer",
        )


def _match_examples(
    examples: Iterable[Any], examples_q: Iterable[Any] | None
) -> Iterator[tuple[Example, Example]]:
    if examples_q is None:
        for row, example in enumerate(examples):
            yield check_example(example, row), example
        return
    for row, (p, q) in enumerate(zip_longest(examples, examples_q, fillvalue=_ABSENT)):
        if p is _ABSENT or q is _ABSENT:
            raise UsageError(
                f"there are {'more' if p is _ABSENT else 'fewer'} examples_q than examples",
                remedy="give one for each example, in the same order",
            )
        yield check_example(p, row), check_example(q, row)


def _check_same_responses(p: list[Request], q: list[Request], name: str) -> None:
    same = len(p) == len(q) and all(
        np.array_equal(one.target_ids, two.target_ids) for one, two in zip(p, q, strict=True)
    )
    if not same:
        raise DataError(
            "the two sides have different responses",
            row=name,
            remedy="give the same `output`, and a layout with which both end it alike",
        )
