"""Log-likelihood of documents longer than the model's context: windows that move by a stride."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from instructjax.errors import DataError, PromptError, UsageError
from instructjax.models.model import Model
from instructjax.prompts.boundary import locate_tokens
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.scoring.engine import Work, score_requests


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


def find_windows(
    num_tokens: int, *, max_length: int, stride: int, prefix: int = 1
) -> list[tuple[int, int, int]]:
    """Windows over a document: (first token seen, first scored, end), as indices of its tokens.

    The first window scores as many tokens as fit, every later one the next `stride`. A window
    reaches back as far as fits, the last one too, so that from the second on every token sees at
    least `max_length - stride` tokens before it.

    Args:
      num_tokens: of the document.
      max_length: positions that the model computes in a window.
      stride: tokens that a window adds; `max_length` gives windows of which each token is scored
        with the least context and the least work, as in lm-evaluation-harness.
      prefix: 1 if every window begins with BOS, 0 if not; then the first token is not scored.

    >>> find_windows(10, max_length=4, stride=2)
    [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    >>> find_windows(10, max_length=4, stride=4)
    [(0, 0, 4), (4, 4, 8), (6, 8, 10)]
    >>> find_windows(10, max_length=4, stride=4, prefix=0)
    [(0, 1, 5), (4, 5, 9), (5, 9, 10)]
    """
    # The last id of a window is predicted and not computed, so one more fits.
    size = max_length + 1 - prefix
    start, stop = 1 - prefix, min(size, num_tokens)
    windows = []
    while start < num_tokens:
        windows.append((max(0, stop - size), start, stop))
        start, stop = stop, min(stop + stride, num_tokens)
    return windows


def score_documents(
    model: Model,
    texts: Iterable[str | Sequence[int]],
    *,
    stride: int | None = None,
    max_length: int | None = None,
    bos: bool = True,
    work: Work | None = None,
) -> Iterator[DocumentScore]:
    """Scores documents of any length, one after the other, as a stream of windows.

    Args:
      model: from `load_model`.
      texts: documents, as text or as token ids that are used as they are.
      stride: tokens that a window adds, by default `max_length`; fewer cost more work and give
        every token more context. See `find_windows`.
      max_length: positions of a window; by default all that the model takes.
      bos: begin every window with BOS (EOS for a model without BOS), not the first alone: models
        that were trained with it fail without it. One that a document begins with is not doubled.
      work: counts positions and programs, if given.

    Raises:
      UsageError: a stride or a length that is out of range.
      DataError: a document without a token to score.
      PromptError: a document that the tokenizer does not keep, or `bos` for a model that has none.
    """
    longest = model.config.max_positions
    length = longest if max_length is None else max_length
    if not 1 <= length <= longest:
        raise UsageError(f"max_length is {length}", remedy=f"give a number from 1 to {longest}")
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise UsageError(f"stride is {step}", remedy=f"give a number from 1 to {length}")
    prefix = _find_prefix(model.tokenizer) if bos else None
    documents: deque[tuple[np.ndarray, int]] = deque()

    def windows() -> Iterator[Request]:
        for row, text in enumerate(texts):
            ids = _encode(model, text, prefix, row)
            found = find_windows(
                len(ids), max_length=length, stride=step, prefix=0 if prefix is None else 1
            )
            if not found:
                raise DataError(
                    "there is no token to score",
                    row=f"document {row + 1}",
                    remedy="leave it out, or give it a text",
                )
            documents.append((ids, len(found)))
            head = np.array([] if prefix is None else [prefix], np.int32)
            for begin, start, stop in found:
                shift = len(head) - begin
                yield Request(
                    ids=np.concatenate([head, ids[begin:stop]]),
                    spans=((start + shift, stop + shift),),
                    num_bytes=_count_bytes(model.tokenizer, ids[start:stop]),
                    row=row,
                )

    parts: list[np.ndarray] = []
    num_bytes = 0
    for scored in score_requests(model, windows(), work=work):
        parts.append(scored.token_log_probs)
        num_bytes += scored.request.num_bytes
        ids, num_windows = documents[0]
        if len(parts) == num_windows:
            documents.popleft()
            yield DocumentScore(
                token_ids=ids[0 if prefix is not None else 1 :],
                token_log_probs=np.concatenate(parts),
                num_bytes=num_bytes,
                num_windows=num_windows,
            )
            parts, num_bytes = [], 0


def score_document(
    model: Model,
    text: str | Sequence[int],
    *,
    stride: int | None = None,
    max_length: int | None = None,
    bos: bool = True,
) -> DocumentScore:
    """Rolling log-likelihood of one document; see `score_documents`.

    For example::

        score = ij.score_document(model, book, stride=1024)
        score.bits_per_byte, score.log_prob_per_token, score.num_tokens
    """
    return next(score_documents(model, [text], stride=stride, max_length=max_length, bos=bos))


def _count_bytes(tokenizer: Tokenizer, ids: Int32[np.ndarray, " n"]) -> int:
    return len(tokenizer.join_bytes(ids[ids < tokenizer.vocab_size]))


def _find_prefix(tokenizer: Tokenizer) -> int:
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if prefix is None:
        raise PromptError(
            f"{tokenizer.name} has neither BOS nor EOS to begin a window with",
            remedy="score with bos=False",
        )
    return prefix


def _encode(
    model: Model, text: str | Sequence[int], prefix: int | None, row: int
) -> Int32[np.ndarray, " n"]:
    tokenizer = model.tokenizer
    if isinstance(text, str):
        ids = tokenizer.encode(text)
        try:
            locate_tokens(tokenizer, ids, text, what="text", at_start=True)
        except PromptError as error:
            raise PromptError(
                error.message, row=f"document {row + 1}", remedy=error.remedy
            ) from error
    else:
        ids = np.asarray(text, np.int32)
        wrong = ids[(ids < 0) | (ids >= model.config.vocab_size)]
        if wrong.size:
            raise PromptError(
                f"{wrong[0]} is not one of the model's {model.config.vocab_size} ids",
                row=f"document {row + 1}",
                remedy="encode the text with this model's tokenizer",
            )
    return ids[1:] if len(ids) and prefix is not None and ids[0] == prefix else ids
