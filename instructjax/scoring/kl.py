"""`kl_divergence`: how much a model, a prompt or a part of it changes what is predicted of y."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from instructjax.data.example import Example
from instructjax.errors import DataError, ModelError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import Boundary, Truncation
from instructjax.prompts.request import Request
from instructjax.scoring.api import make_encoder
from instructjax.scoring.divergence import hidden_divergences
from instructjax.scoring.hidden import hidden_before_targets, output_table
from instructjax.scoring.rows import encode_row, parse_contexts

_hidden_divergences = jax.jit(hidden_divergences, static_argnums=(4, 5))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DivergedRow:
    """Two next-token distributions at every position of one y.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      candidate: index of y among the example's outputs.
      token_ids: y's tokens; position t is before token t.
      kl: KL(p || q) at each position, nats.
      js: Jensen-Shannon divergence at each position, nats.
    """

    id: str
    candidate: int
    token_ids: Int32[np.ndarray, " n"]
    kl: Float32[np.ndarray, " n"]
    js: Float32[np.ndarray, " n"]

    @property
    def mean_kl(self) -> float:
        """Over the positions of y, nats a token."""
        return float(self.kl.mean(dtype=np.float64))

    @property
    def mean_js(self) -> float:
        """Over the positions of y, nats a token."""
        return float(self.js.mean(dtype=np.float64))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Divergences:
    """Rows in the order of the input: by example, within it by candidate."""

    rows: tuple[DivergedRow, ...]

    @property
    def kl(self) -> list[Float32[np.ndarray, " n"]]:
        """KL(p || q) at each position of each y, nats."""
        return [row.kl for row in self.rows]

    @property
    def js(self) -> list[Float32[np.ndarray, " n"]]:
        """Jensen-Shannon divergence at each position of each y, nats."""
        return [row.js for row in self.rows]

    @property
    def num_tokens(self) -> int:
        """Positions in all."""
        return sum(len(row.kl) for row in self.rows)

    @property
    def mean_kl(self) -> float:
        """Over all positions of all y, nats a token; NaN without rows."""
        return self._mean("kl")

    @property
    def mean_js(self) -> float:
        """Over all positions of all y, nats a token; NaN without rows."""
        return self._mean("js")

    def _mean(self, name: str) -> float:
        total = math.fsum(float(getattr(row, name).sum(dtype=np.float64)) for row in self.rows)
        return total / self.num_tokens if self.rows else math.nan

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[DivergedRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> DivergedRow:
        return self.rows[index]


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
    divergence of the distributions over whole responses.

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
      UsageError: an unknown option, or not as many `examples_q` as examples.
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
    options: dict[str, Any] = {
        "layout": layout,
        "include_eos": include_eos,
        "boundary": boundary,
        "truncation": truncation,
        "max_length": max_length,
    }
    encoder, encoder_q = make_encoder(model, **options), make_encoder(other, **options)
    table, table_q = output_table(model), output_table(other)
    rows = []
    for row, (p, q) in enumerate(_pair(examples, examples_q)):
        requests = encode_row(model, encoder, p, row, (context,))
        requests_q = encode_row(other, encoder_q, q, row, (context_q,))
        name = p.id or f"row {row + 1}"
        _check_same_responses(requests, requests_q, name)
        for request, request_q in zip(requests, requests_q, strict=True):
            kl, js = _hidden_divergences(
                hidden_before_targets(model, request),
                table,
                hidden_before_targets(other, request_q),
                table_q,
                model.config.logit_softcap,
                other.config.logit_softcap,
            )
            count = request.num_tokens
            rows.append(
                DivergedRow(
                    id=name,
                    candidate=request.candidate,
                    token_ids=request.target_ids,
                    kl=np.asarray(kl)[:count],
                    js=np.asarray(js)[:count],
                )
            )
    return Divergences(rows=tuple(rows))


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


def _pair(
    examples: Example | Iterable[Example], examples_q: Example | Iterable[Example] | None
) -> Iterator[tuple[Example, Example]]:
    one = [examples] if isinstance(examples, Example) else examples
    if examples_q is None:
        yield from ((example, example) for example in one)
        return
    two = [examples_q] if isinstance(examples_q, Example) else examples_q
    for p, q in zip_longest(one, two):
        if p is None or q is None:
            raise UsageError(
                f"there are {'more' if p is None else 'fewer'} examples_q than examples",
                remedy="give one for each example, in the same order",
            )
        yield p, q


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
