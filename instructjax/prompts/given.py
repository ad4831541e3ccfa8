"""Examples that are token ids already: used as they are, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.prompts.options import check_choice
from instructjax.prompts.parts import CONTEXTS
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.prompts.truncation import TooLong


def encode_given(
    tokenizer: Tokenizer,
    example: Example,
    *,
    row: int,
    context: str,
    vocab_size: int,
    max_length: int | None,
) -> list[Request]:
    """Requests from `prompt_ids` and `output_ids`; nothing is added, and nothing is ever cut.

    Bytes of y are counted without an end-of-sequence token at its end.

    Raises:
      PromptError: an id out of range, no ids, text beside the ids, too many ids, or a context
        other than "cz" (there is no c or z to drop).
    """
    check_choice("context", context, CONTEXTS)
    if context != "cz":
        raise PromptError(
            f"the context {context!r} drops c or z, and token ids show neither",
            remedy="give text, or ask for the context cz only",
        )
    if example.output is not None and None not in (example.prompt_ids, example.output_ids):
        raise PromptError(
            "there are both token ids and text", remedy="give prompt_ids and output_ids, or text"
        )
    if example.prompt_ids is None or example.output_ids is None or example.output is not None:
        raise PromptError(
            "token ids are given for only one of prompt and response",
            remedy="give prompt_ids and output_ids, or text alone",
        )
    prompt = _check_ids(example.prompt_ids, "prompt_ids", vocab_size)
    if not len(prompt):
        raise PromptError("prompt_ids are empty", remedy="give at least BOS")
    try:
        candidates: Sequence[Any] = example.outputs_ids
    except (TypeError, ValueError) as error:
        raise PromptError(
            "output_ids are no whole numbers", remedy="give a list of ids, or a list of such lists"
        ) from error
    requests = []
    for k, candidate in enumerate(candidates):
        response = _check_ids(candidate, "output_ids", vocab_size)
        if not len(response):
            raise PromptError("the response is empty", remedy="give output_ids")
        length = len(prompt) + len(response)
        if max_length is not None and length > max_length:
            raise TooLong(
                f"prompt_ids and output_ids are {length} tokens, more than {max_length}",
                remedy="shorten the ids (given ids are never cut)",
            )
        text = response[:-1] if int(response[-1]) in tokenizer.eos_ids else response
        known = [i for i in text.tolist() if i < tokenizer.vocab_size]
        requests.append(
            Request(
                ids=np.concatenate([prompt, response]),
                spans=((len(prompt), length),),
                num_bytes=len(tokenizer.join_bytes(known)),
                row=row,
                candidate=k,
                context=context,
            )
        )
    return requests


def _check_ids(ids: Any, name: str, vocab_size: int) -> Int32[np.ndarray, " n"]:
    try:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} are no list of ids", remedy="give whole numbers") from error
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PromptError(f"{name} are no list of whole numbers", remedy="give token ids")
    wrong = array[(array < 0) | (array >= vocab_size)]
    if wrong.size:
        raise PromptError(
            f"{name} hold {wrong[0]}, and ids go from 0 to {vocab_size - 1}",
            remedy="encode the text with this model's tokenizer",
        )
    return array.astype(np.int32)
