"""A document of any length as windows that the model takes, every token predicted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from instructjax.errors import DataError, PromptError
from instructjax.models.model import Model
from instructjax.prompts.boundary import locate_tokens
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Ids, Tokenizer

WindowBos = Literal["every", "first", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What one window shows of a document and what it scores.

    Attributes:
      bos: whether BOS stands before the tokens.
      begin: first token that is seen.
      start: first token that is scored.
      stop: behind the last token, which is seen by none and scored.
    """

    bos: bool
    begin: int
    start: int
    stop: int


def find_windows(
    num_tokens: int, *, max_length: int, stride: int, bos: WindowBos = "every"
) -> list[Window]:
    """Windows over a document, as indices of its tokens.

    The first window scores as many tokens as fit, every later one the next `stride`. Every window
    reaches back as far as fits, the last one too. With `bos="first"` these are the windows of
    lm-evaluation-harness, `get_rolling_token_windows` with a `context_len` of
    `max_length - stride + 1`; with "every", the oldest token of each later window gives its place
    to BOS.

    Args:
      num_tokens: of the document.
      max_length: positions that the model computes in a window, BOS counted.
      stride: tokens that a window adds, from 1 to `max_length`, which is the least work.
      bos: which windows begin with it; if none does, the first token of all is not scored.

    >>> for window in find_windows(10, max_length=4, stride=4):
    ...     print(window)
    Window(bos=True, begin=0, start=0, stop=4)
    Window(bos=True, begin=4, start=4, stop=8)
    Window(bos=True, begin=6, start=8, stop=10)
    >>> find_windows(10, max_length=4, stride=4, bos="first")[-1]
    Window(bos=False, begin=5, start=8, stop=10)
    """
    windows: list[Window] = []
    start = 1 if bos == "never" else 0
    while start < num_tokens:
        shown = bos == "every" or (bos == "first" and not windows)
        # The last token is predicted and not computed, so one more than is computed fits.
        size = max_length + 1 - shown
        stop = min(start + stride if windows else size, num_tokens)
        windows.append(Window(bos=shown, begin=max(0, stop - size), start=start, stop=stop))
        start = stop
    return windows


def cut_document(
    model: Model,
    document: str | Ids,
    *,
    max_length: int,
    stride: int | None = None,
    bos: WindowBos = "every",
    name: str = "the document",
    row: int = 0,
) -> Iterator[Request]:
    """Requests that together score a whole document, one a window; see `find_windows`.

    Args:
      model: whose tokenizer and vocabulary count.
      document: text, or token ids that are used as they are. If it begins with BOS itself, that
        is not doubled and not scored, unless `bos` is "never".
      max_length, stride, bos: see `find_windows`; the stride is `max_length` by default. For a
        model without BOS, EOS takes its place.
      name: what to call the document in a message.
      row: its index in the input, the same in all its requests.

    Raises:
      DataError: there is no token to score.
      PromptError: ids that are none, a text that the tokenizer does not keep, or a model with
        neither BOS nor EOS.
    """
    try:
        prefix = None if bos == "never" else _find_prefix(model.tokenizer)
        ids, places = _encode(model, document)
    except PromptError as error:
        raise PromptError(error.message, row=name, remedy=error.remedy) from error
    if len(ids) and ids[0] == prefix:
        ids, places = ids[1:], places[1:]
    windows = find_windows(
        len(ids), max_length=max_length, stride=max_length if stride is None else stride, bos=bos
    )
    if not windows:
        raise DataError(
            "there is no token to score", row=name, remedy="leave it out, or give it a text"
        )
    for window in windows:
        head = [prefix] if window.bos else []
        shift = len(head) - window.begin
        yield Request(
            ids=np.concatenate([np.array(head, np.int32), ids[window.begin : window.stop]]),
            spans=((window.start + shift, window.stop + shift),),
            num_bytes=int(places[window.stop] - places[window.start]),
            row=row,
        )


def _find_prefix(tokenizer: Tokenizer) -> int:
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if prefix is None:
        raise PromptError(
            f"{tokenizer.name} has neither BOS nor EOS to begin a window with",
            remedy="score without it (bos='never')",
        )
    return prefix


def _encode(
    model: Model, document: str | Ids
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n+1"]]:
    """Token ids, and where in the text's UTF-8 each begins."""
    tokenizer = model.tokenizer
    if isinstance(document, str):
        ids = tokenizer.encode(document)
        return ids, locate_tokens(tokenizer, ids, document, what="text", at_start=True)
    given = np.asarray(document)
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise PromptError("a document is no list of whole numbers", remedy="give text or token ids")
    wrong = given[(given < 0) | (given >= model.config.vocab_size)]
    if wrong.size:
        raise PromptError(
            f"{wrong[0]} is not one of the model's {model.config.vocab_size} ids",
            remedy="encode the text with this model's tokenizer",
        )
    # A model may have more embeddings than its tokenizer has tokens.
    sizes = [len(tokenizer.token_bytes(i)) if i < tokenizer.vocab_size else 0 for i in given]
    return given.astype(np.int32), np.cumsum([0, *sizes])
