"""Where a response ends: at a stop token, at the first stop string, or where its budget ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from instructjax.errors import UsageError
from instructjax.prompts.tokenizer import Tokenizer

FinishReason = Literal["stop_token", "stop_string", "length"]


class StopFinder:
    """Follows a response token by token, and says when a stop string is in its bytes.

    Args:
      tokenizer: gives the bytes of a token.
      strings: any of them ends the response, before its first byte; may span tokens.

    Raises:
      UsageError: a stop string is empty.

    >>> import tokenizers
    >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "$": 2}, []))
    >>> finder = StopFinder(Tokenizer(backend, eos_ids=(2,)), ["ab"])
    >>> [finder.add(i) for i in (1, 0, 1)], finder.text
    ([False, False, True], 'b')
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._strings = [check_stop(string).encode() for string in strings]
        self._bytes = bytearray()

    def add(self, token_id: int) -> bool:
        """Takes a token; whether a stop string is complete with it."""
        before = len(self._bytes)
        if token_id < self._tokenizer.vocab_size:
            self._bytes += self._tokenizer.token_bytes(token_id)
        places = [
            self._bytes.find(string, max(0, before - len(string) + 1)) for string in self._strings
        ]
        found = [place for place in places if place >= 0]
        if found:
            del self._bytes[min(found) :]
        return bool(found)

    @property
    def text(self) -> str:
        """What was taken so far, without the stop string and what follows it."""
        return self._bytes.decode("utf-8", errors="replace")


def check_stop(string: object) -> str:
    """Returns a stop string, or raises a UsageError if it is none."""
    if not isinstance(string, str) or not string:
        raise UsageError(f"the stop string {string!r} is empty or no text", remedy="give a text")
    try:
        string.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the stop string {string!r} is no UTF-8", remedy="give a text in UTF-8"
        ) from None
    return string


def list_stops(stop: object) -> tuple[str, ...]:
    """One stop string or several, as several.

    >>> list_stops("END"), list_stops(["a", "b"])
    (('END',), ('a', 'b'))
    """
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Iterable):
        raise UsageError(f"stop is {stop!r}", remedy="give a text, or several")
    return tuple(map(check_stop, stop))


def stop_mask(vocab_size: int, stop_ids: Sequence[int]) -> np.ndarray:
    """bool [V], true for tokens that end a response.

    Raises:
      UsageError: an id that the model does not know.
    """
    mask = np.zeros(vocab_size, bool)
    if isinstance(stop_ids, str) or not isinstance(stop_ids, Iterable):
        raise UsageError(f"stop_ids is {stop_ids!r}", remedy="give a list of ids")
    for i in stop_ids:
        if isinstance(i, bool) or not isinstance(i, int | np.integer) or not 0 <= i < vocab_size:
            raise UsageError(
                f"the stop token {i!r} is not one of the model's {vocab_size}",
                remedy="give ids of the vocabulary",
            )
        mask[i] = True
    return mask
