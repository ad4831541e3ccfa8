"""Words and n-grams of many texts as 64-bit hashes, without a Python object a word.

A word is a run of letters, digits and underscores of the text after Unicode NFKC and case folding,
so that punctuation, case and spacing make no difference. In scripts that put no spaces between
words (Chinese characters, Japanese kana, Thai, Lao, Burmese, Khmer) every letter is one. A hash is
polynomial in the word's bytes modulo 2^64, then scrambled; every match that is reported is made
sure of on the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt64

from instructjax.generalization.identity import mix

_BASE = 0x9E3779B97F4A7C15 | 1
_NOT_WORD = re.compile(r"\W+")
# Thai and Lao, Burmese, Khmer, kana with the marks of repetition, Chinese characters.
_ALONE = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_IS_WORD = np.zeros(256, bool)
_IS_WORD[[*range(48, 58), *range(65, 91), 95, *range(97, 123), *range(128, 256)]] = True


@dataclass(frozen=True, kw_only=True)
class Words:
    """Hashes of the words of several texts, one text after the other.

    Attributes:
      hashes: one a word.
      starts: text t has the words starts[t] to starts[t + 1].
    """

    hashes: UInt64[np.ndarray, " W"]
    starts: Int[np.ndarray, " B1"]

    @property
    def counts(self) -> Int[np.ndarray, " B"]:
        """Words of each text."""
        return np.diff(self.starts)


def fold_text(text: str) -> str:
    """The text whose words are compared: NFKC, case folded, one space for all that is no word.

    >>> fold_text("“It’s”  A\\ttest!"), fold_text("JAX で書く。")
    ('it s a test', 'jax で 書 く')
    """
    if not text.isascii():
        text = _ALONE.sub(r" \1 ", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_WORD.sub(" ", text).strip().lower()


def hash_words(texts: Sequence[str]) -> Words:
    """Hashes of all words of the texts.

    >>> words = hash_words(["A cat, a dog", "", "The CAT"])
    >>> words.counts.tolist(), bool(words.hashes[1] == words.hashes[5])
    ([4, 0, 2], True)
    """
    # Only texts with other letters need the regular expression; for the rest, bytes tell.
    folded = [t.lower() if t.isascii() else fold_text(t) for t in texts]
    parts = [text.encode("utf-8", "surrogatepass") for text in folded]
    data = np.frombuffer(b" ".join([b"", *parts, b""]), np.uint8)
    inside = _IS_WORD[data]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    begin, end = edges[0::2], edges[1::2]
    hashes = _hash_spans(data.astype(np.uint64), begin, end)
    sizes = np.fromiter((len(part) + 1 for part in parts), int, len(parts))
    borders = np.concatenate([[0], np.cumsum(sizes)])
    return Words(hashes=hashes, starts=np.searchsorted(begin, borders))


def hash_ngrams(words: Words, n: int) -> tuple[UInt64[np.ndarray, " G"], Int[np.ndarray, " G"]]:
    """Hashes of all runs of n words within a text, and the word that each begins with.

    >>> hashes, first = hash_ngrams(hash_words(["a b c", "b c"]), 2)
    >>> first.tolist(), bool(hashes[1] == hashes[2])
    ([0, 1, 3], True)
    """
    last = np.repeat(words.starts[1:], words.counts)
    first = np.flatnonzero(np.arange(len(words.hashes)) + n <= last)
    return _hash_spans(words.hashes, first, first + n), first


def _hash_spans(
    values: UInt64[np.ndarray, " V"], begin: Int[np.ndarray, " S"], end: Int[np.ndarray, " S"]
) -> UInt64[np.ndarray, " S"]:
    """Hashes of the spans [begin, end) of a sequence: sum of values[i] base^(i - begin)."""
    powers, inverses = _powers(max(16, len(values) - 1).bit_length())
    with np.errstate(over="ignore"):
        sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum((values + np.uint64(1)) * powers[: len(values)], out=sums[1:])
        hashes = (sums[end] - sums[begin]) * inverses[begin]
    return mix(hashes, seed=1)


@lru_cache(maxsize=4)
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse modulo 2^64, 2^bits + 1 of each."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        table = np.full((1 << bits) + 1, base, np.uint64)
        table[0] = 1
        with np.errstate(over="ignore"):
            tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]
