"""A text of any length in windows that the model takes, every token predicted once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32

from instructjax.errors import PromptError
from instructjax.prompts.boundary import Segment, encode_exact
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Tokenizer


def encode_rolling(tokenizer: Tokenizer, text: str, *, width: int, row: int) -> Iterator[Request]:
    """Requests that together score a whole text, one a window.

    Args:
      tokenizer: of the model.
      text: what is scored, all of it.
      width: tokens that the model sees in a window, BOS counted.
      row: index of the text in the input, the same in all its requests.

    Raises:
      PromptError: the text is empty or cannot be encoded faithfully, or the model has neither BOS
        nor EOS to begin a window with.
    """
    start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start_id is None:
        raise PromptError(f"{tokenizer.name} has neither BOS nor EOS to begin a window with")
    ids = encode_exact(tokenizer, [Segment(text=text)]).ids if text else np.zeros(0, np.int32)
    if len(ids) and int(ids[0]) == tokenizer.bos_id:
        # The text spells BOS itself: it begins the first window, once.
        ids = ids[1:]
    if not len(ids):
        raise PromptError("the text is empty", remedy="leave the document out")
    yield from cut_windows(ids, start_id=start_id, width=width, row=row)


def cut_windows(
    ids: Int32[np.ndarray, " n"], *, start_id: int, width: int, row: int = 0
) -> Iterator[Request]:
    """Disjoint windows of predicted tokens, each conditioned on BOS and on all that still fits.

    They are those of lm-evaluation-harness (`get_rolling_token_windows` with a context of 1) but
    for one token: the oldest token of each window after the first gives its place to BOS, without
    which models of several families are far off.

    Args:
      ids: the text.
      start_id: BOS, or what stands for it.
      width: tokens that the model sees in a window, `start_id` counted.
      row: index of the text in the input.

    >>> for window in cut_windows(np.arange(10, dtype=np.int32), start_id=99, width=4):
    ...     print(window.ids.tolist(), window.spans)
    [99, 0, 1, 2, 3] ((1, 5),)
    [99, 4, 5, 6, 7] ((1, 5),)
    [99, 6, 7, 8, 9] ((3, 5),)
    """
    for start in range(0, len(ids), width):
        stop = min(start + width, len(ids))
        shown = ids[max(0, stop - width) : stop]
        window = np.concatenate([np.asarray([start_id], np.int32), shown])
        yield Request(
            ids=window,
            spans=((len(window) - (stop - start), len(window)),),
            num_bytes=0,
            row=row,
        )
