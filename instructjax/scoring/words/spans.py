"""Which tokens make a word: white space separates words, and belongs to the word after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
      pieces: the bytes of each id.
      starts_word: whether the text begins with white space.
      control: special tokens, and ids without a token: they end the word before them.
    """

    pieces: list[bytes]
    starts_word: Bool[np.ndarray, " V"]
    control: Bool[np.ndarray, " V"]


def describe_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> VocabularyKinds:
    """Kinds of all ids that a model knows, also of those that its tokenizer never gives."""
    known = min(vocab_size, tokenizer.vocab_size)
    pieces = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (vocab_size - known)
    special = tokenizer.special_ids or frozenset()
    control = np.array([not piece or i in special for i, piece in enumerate(pieces)], np.bool_)
    texts = (piece.decode("utf-8", errors="replace") for piece in pieces)
    spaced = np.array([text[:1].isspace() for text in texts], np.bool_)
    return VocabularyKinds(pieces=pieces, starts_word=spaced & ~control, control=control)


def split_characters(pieces: Sequence[bytes]) -> list[str]:
    """The characters that begin in each piece of a text: "" for one that only goes on.

    Bytes that are no UTF-8 are surrogates, as in PEP 383.

    >>> split_characters([b"a", b"\\xe3\\x80", b"\\x80b"])
    ['a', '\\u3000', 'b']
    """
    text = b"".join(pieces).decode("utf-8", errors="surrogateescape")
    widths = [len(char.encode("utf-8", errors="surrogateescape")) for char in text]
    starts = np.cumsum([0, *widths])
    stops = np.searchsorted(starts, np.cumsum([len(piece) for piece in pieces]))
    return [text[i:j] for i, j in pairwise([0, *stops.tolist()])]


def find_words(texts: Sequence[str], control: Bool[np.ndarray, " n"]) -> list[Word]:
    """Words of a text that is given token by token; every token is in exactly one.

    A token in which one word ends and another begins belongs to the first, and what follows it
    without white space too. White space at the end is a word of its own, as is a control token.

    Args:
      texts: the tokens, by the characters that begin in them.
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
    if control or not text:
        return control
    return ending == "over" or ending == "open" and text[:1].isspace()


def _end(text: str, before: Ending | None) -> Ending | None:
    if not text:
        return before
    if text.isspace():
        return "blank" if before in (None, "blank") else "over"
    return "over" if text[-1].isspace() else "open"
