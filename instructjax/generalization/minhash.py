"""MinHash: the share of shingles that two texts have in common, from a few numbers a text.

Broder 1997: the smallest hash of a set's members is the same for two sets with a probability that
is their Jaccard similarity. Signatures are cut into bands; texts that agree in a whole band are
candidates (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt64

from instructjax.generalization.identity import mix
from instructjax.generalization.word_hashes import Words, fold_text, hash_ngrams

SHINGLE = 3
PERMUTATIONS = 64
BANDS = 16


def minhash_signatures(words: Words, permutations: int = PERMUTATIONS) -> UInt64[np.ndarray, "B K"]:
    """Signatures of texts over their runs of three words; of a shorter text, over its words.

    Texts without a word all have the same one.

    >>> from instructjax.generalization.word_hashes import hash_words
    >>> minhash_signatures(hash_words(["one two three four", "One, two, three: four!"]), 4).shape
    (2, 4)
    """
    shingles, first = hash_ngrams(words, SHINGLE)
    short = words.counts < SHINGLE
    of_short = np.flatnonzero(np.repeat(short, words.counts))
    # Sentinels give every text a member, so that no stretch of `reduceat` is empty.
    sentinel = np.full(len(words.counts), np.iinfo(np.uint64).max)
    text_of = np.repeat(np.arange(len(words.counts)), words.counts)
    owner = np.concatenate([text_of[first], text_of[of_short], np.arange(len(sentinel))])
    order = np.argsort(owner, kind="stable")
    members = np.concatenate([shingles, words.hashes[of_short], sentinel])[order]
    starts = np.searchsorted(owner[order], np.arange(len(sentinel)))
    alone = members == np.iinfo(np.uint64).max
    keys = mix(np.arange(2 * permutations, dtype=np.uint64), seed=7)
    signatures = np.empty((len(sentinel), permutations), np.uint64)
    for k in range(permutations):
        with np.errstate(over="ignore"):
            # Odd multipliers; the high bits of a multiply-add are the random ones.
            hashed = (members * (keys[2 * k] | np.uint64(1)) + keys[2 * k + 1]) >> np.uint64(20)
        hashed[alone] = np.uint64(1 << 44)
        signatures[:, k] = np.minimum.reduceat(hashed, starts) if len(starts) else 0
    return signatures


def estimate_jaccard(
    a: UInt64[np.ndarray, "B K"], b: UInt64[np.ndarray, "B K"]
) -> Float64[np.ndarray, " B"]:
    """The share of equal places of two signatures; its standard error is sqrt(J (1 - J) / K)."""
    return (a == b).mean(-1)


def hash_bands(
    signatures: UInt64[np.ndarray, "B K"], bands: int = BANDS
) -> UInt64[np.ndarray, "B {bands}"]:
    """One key a band: texts with Jaccard similarity J share at least one with a probability of
    1 - (1 - J^r)^bands, r = K / bands (0.9998 at J = 0.8 with 64 and 16)."""
    rows = signatures.reshape(len(signatures), bands, -1)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for place in range(rows.shape[2]):
        keys = mix((keys ^ rows[:, :, place]).ravel(), seed=place).reshape(keys.shape)
    return keys ^ mix(np.arange(bands, dtype=np.uint64), seed=99)


def list_shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The set that two texts are compared by, exactly."""
    words = fold_text(text).split()
    size = SHINGLE if len(words) >= SHINGLE else 1
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def jaccard(a: str, b: str) -> float:
    """The share of shingles in common: |A and B| / |A or B|; 1 for two texts without a word.

    >>> jaccard("a b c d", "A b c e")
    0.3333333333333333
    """
    one, other = list_shingles(a), list_shingles(b)
    union = len(one | other)
    return len(one & other) / union if union else 1.0
