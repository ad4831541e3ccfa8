"""Which tokens make a word: white space separates words, and belongs to the word after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from instructjax.prompts.tokenizer import Tokenizer

# After a word: "open", it goes on unless white space or a control token comes; "blank", it is
# white space so far and goes on unless a control token comes; "over", whatever comes is not its.
Ending = Literal["open", "blank", "over"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """Tokens `span[0]` to `span[1]` of a text, and how the last of them leaves the word."""

    span: tuple[int, int]
    ending: Ending


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VocabularyKinds:
    """What tokens do to words.

    Attributes:
      texts: of each id; what is no whole character is U+FFFD.
      starts_word: whether the text begins with white space.
      control: special tokens, and ids without a token: they end the word before them.
    """

    texts: list[str]
    starts_word: Bool[np.ndarray, " V"]
    control: Bool[np.ndarray, " V"]


def describe_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> VocabularyKinds:
    """Kinds of all ids that a model knows, also of those that its tokenizer never gives."""
    known = min(vocab_size, tokenizer.vocab_size)
    pieces = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
    special = tokenizer.special_ids or frozenset()
    control = np.array([not piece or i in special for i, piece in enumerate(pieces)], np.bool_)
    texts = [piece.decode("utf-8", errors="replace") for piece in pieces]
    spaced = np.array([text[:1].isspace() for text in texts], np.bool_)
    return VocabularyKinds(texts=texts, starts_word=spaced & ~control, control=control)


def find_words(texts: Sequence[str], control: Bool[np.ndarray, " n"]) -> list[Word]:
    """Words of a text that is given token by token; every token is in exactly one.

    A token in which one word ends and another begins belongs to the first, and what follows it
    without white space too. White space at the end is a word of its own, as is a control token.

    Args:
      texts: the tokens.
      control: which of them are control tokens.

    >>> texts = ["The", " cat", "s", ".\\n", "Hi", "<end>"]
    >>> [word.span for word in find_words(texts, np.array([False] * 5 + [True]))]
    [(0, 1), (1, 4), (4, 5), (5, 6)]
    """
    words: list[Word] = []
    start, ending = 0, None
    for i, text in enumerate(texts):
        if i and _begins(text, bool(control[i]), ending):
            words.append(Word(span=(start, i), ending=ending or "over"))
            start, ending = i, None
        ending = "over" if control[i] else _end(text, ending)
    if texts:
        words.append(Word(span=(start, len(texts)), ending=ending or "over"))
    return words


def _begins(text: str, control: bool, ending: Ending | None) -> bool:
    if control or ending == "over":
        return True
    return ending == "open" and text[:1].isspace()


def _end(text: str, before: Ending | None) -> Ending | None:
    if not text:
        return before
    if text.isspace():
        return "blank" if before in (None, "blank") else "over"
    return "over" if text[-1].isspace() else "open"
