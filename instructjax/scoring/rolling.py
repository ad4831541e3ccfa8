"""Log-likelihood of documents longer than the model's context: windows that move by a stride."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import check_choice
from instructjax.prompts.tokenizer import Ids
from instructjax.scoring.engine import ScoredRequest, Work, score_requests
from instructjax.scoring.windows import WindowBos, cut_document


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DocumentScore:
    """Every token of one document, scored exactly once.

    Attributes:
      token_ids: of the scored tokens, in order. BOS is not one of them; without it the first
        token of the document, which nothing predicts, is not either.
      token_log_probs: nats.
      num_bytes: UTF-8 bytes of the scored tokens.
      num_windows: how many the document was cut into.
    """

    token_ids: Int32[np.ndarray, " n"]
    token_log_probs: Float32[np.ndarray, " n"]
    num_bytes: int
    num_windows: int

    @property
    def num_tokens(self) -> int:
        """Scored tokens."""
        return len(self.token_ids)

    @property
    def log_prob(self) -> float:
        """Sum over the tokens, nats, in float64."""
        return float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def log_prob_per_token(self) -> float:
        """Nats a token."""
        return self.log_prob / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """-log Pr / (ln 2 x bytes); NaN for a document of no bytes."""
        return -self.log_prob / (math.log(2) * self.num_bytes) if self.num_bytes else math.nan


def score_documents(
    model: Model,
    texts: Iterable[str | Ids],
    *,
    stride: int | None = None,
    max_length: int | None = None,
    bos: WindowBos = "every",
    work: Work | None = None,
) -> Iterator[DocumentScore]:
    """Scores documents of any length, in order, as one stream of windows.

    Args:
      model: from `load_model`.
      texts: documents, as text or as token ids that are used as they are.
      stride: tokens that a window adds, by default `max_length`; fewer cost more work and give
        every token at least `max_length - stride` tokens to go by. See `find_windows`.
      max_length: positions of a window; by default all that the model takes.
      bos: which windows begin with BOS (EOS for a model without BOS): "every" one, for models
        that were trained with it fail without it; the "first" one, as in lm-evaluation-harness;
        or "never".
      work: counts positions and programs, if given.

    Raises:
      UsageError: an option that is unknown or out of range.
      DataError: a document without a token to score.
      PromptError: a document that the tokenizer does not keep, or BOS for a model that has none.
    """
    longest = model.config.max_positions
    length = longest if max_length is None else max_length
    if not _is_whole(length) or not 1 <= length <= longest:
        raise UsageError(f"max_length is {length!r}", remedy=f"give a number from 1 to {longest}")
    if stride is not None and not (_is_whole(stride) and 1 <= stride <= length):
        raise UsageError(f"stride is {stride!r}", remedy=f"give a number from 1 to {length}")
    check_choice("bos", bos, ("every", "first", "never"))
    if isinstance(texts, str):
        raise UsageError("one text is given", remedy="give a list of them, or use score_document")
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise UsageError(
            f"texts are of type {type(texts).__name__}", remedy="give a list of texts or of ids"
        )
    requests = (
        request
        for row, text in enumerate(texts)
        for request in cut_document(
            model,
            text,
            max_length=length,
            stride=stride,
            bos=bos,
            name=f"document {row + 1}",
            row=row,
        )
    )
    scored = score_requests(model, requests, work=work)
    return (
        _join(list(windows))
        for _, windows in itertools.groupby(scored, key=lambda window: window.request.row)
    )


def score_document(
    model: Model,
    text: str | Ids,
    *,
    stride: int | None = None,
    max_length: int | None = None,
    bos: WindowBos = "every",
) -> DocumentScore:
    """Rolling log-likelihood of one document; see `score_documents`.

    For example::

        score = ij.score_document(model, book, stride=1024)
        score.bits_per_byte, score.log_prob_per_token, score.num_tokens
    """
    return next(score_documents(model, [text], stride=stride, max_length=max_length, bos=bos))


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _join(windows: Sequence[ScoredRequest]) -> DocumentScore:
    return DocumentScore(
        token_ids=np.concatenate([window.request.target_ids for window in windows]),
        token_log_probs=np.concatenate([window.token_log_probs for window in windows]),
        num_bytes=sum(window.request.num_bytes for window in windows),
        num_windows=len(windows),
    )
