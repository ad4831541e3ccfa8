"""Leaks: texts that are said to be new, and that training texts hold in whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt64

from instructjax.errors import UsageError
from instructjax.generalization.first_owners import FirstOwners
from instructjax.generalization.identity import mix
from instructjax.generalization.minhash import hash_bands, jaccard, minhash_signatures
from instructjax.generalization.text_store import TextStore
from instructjax.generalization.word_hashes import Words, fold_text, hash_ngrams, hash_words

# Evaluated texts are held as keys: this many bytes of text at a time, whatever there is of them.
EVAL_BYTES = 96 << 20
TRAIN_BYTES = 4 << 20
_CANDIDATES = 4


@dataclass(frozen=True, kw_only=True)
class LeakRules:
    """When an evaluated text counts as leaked.

    Attributes:
      short, long: n-gram lengths, words. A run of `long` words that a training text has too is a
        leak (GPT-3's 13-grams; Brown et al. 2020, app. C).
      cover: so is this share of its words, or more, in shared runs of `short` words.
      similarity: so is this Jaccard similarity, or more, of sets of three-word shingles to one
        training text. The same words in the same order are a leak at any length.
    """

    short: int = 8
    long: int = 13
    cover: float = 0.5
    similarity: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.short < self.long:
            raise UsageError(
                f"n-gram lengths {self.short} and {self.long}", remedy="give two, ascending"
            )
        for name in ("cover", "similarity"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="give more than 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Leak:
    """An evaluated text, and the training text that it shares most with.

    Attributes:
      text, source: numbers of the evaluated and of the training text.
      kinds: of "same words", "13-gram", "8-gram cover" and "near duplicate", those that hold.
      cover_short, cover_long: shares of the text's words in n-grams that any training text has.
      similarity: Jaccard similarity with `source`.
      shared: the longest run of words of the text that `source` has too.
    """

    text: int
    source: int
    kinds: tuple[str, ...]
    cover_short: float
    cover_long: float
    similarity: float
    shared: str


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """What was found about every evaluated text, leaked or not.

    Attributes:
      cover_short, cover_long: shares of words in shared n-grams, one a text.
      leaks: those that the rules name, in the order of the texts.
    """

    cover_short: Float64[np.ndarray, " B"]
    cover_long: Float64[np.ndarray, " B"]
    leaks: tuple[Leak, ...]


def find_leaks(
    texts: TextStore,
    evaluated: Int[np.ndarray, " B"],
    training: Int[np.ndarray, " A"],
    rules: LeakRules | None = None,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> Overlaps:
    """Compares evaluated texts with all training texts.

    Shared n-grams are found exactly, whichever training text they are in. The training text that
    is named shares most of those that were first to have an n-gram or a MinHash band in common;
    earlier means earlier in `training`. A near duplicate that shares no run of `short` words is
    found with the probability that `hash_bands` gives. Memory is that of the evaluated texts' keys,
    about 96 MB of text at a time, each time with a pass over the training texts.

    Args:
      texts: where the texts are.
      evaluated, training: numbers of texts.
      rules: when a text counts as leaked.
      on_progress: called with the share of the work that is done.

    >>> with TextStore(["the cat sat on the mat", "a dog", "The cat sat on the mat."]) as texts:
    ...     found = find_leaks(texts, np.array([1, 2]), np.array([0])).leaks
    >>> [(leak.text, leak.source, leak.kinds) for leak in found]
    [(2, 0, ('same words', 'near duplicate'))]
    """
    rules = rules or LeakRules()
    blocks = list(texts.chunks(evaluated, EVAL_BYTES))
    covers = np.zeros((2, len(evaluated)))
    leaks: list[Leak] = []
    for number, (begin, block) in enumerate(blocks):

        def tell(share: float, number: int = number) -> None:
            if on_progress is not None:
                on_progress((number + share) / len(blocks))

        owners = FirstOwners(
            np.concatenate([np.unique(_list_keys(chunk, rules).keys) for chunk in _split(block)])
        )
        for place, chunk in texts.chunks(training, TRAIN_BYTES):
            shown = _list_keys(chunk, rules)
            owners.show(shown.keys, shown.text + place)
            tell(0.9 * place / max(len(training), 1))
        at = begin
        # Made again rather than kept: they are four times as large as what is looked up in.
        for chunk in _split(block):
            part = _list_keys(chunk, rules)
            found = _Found.look_up(part, owners, rules)
            covers[:, at : at + part.size] = found.covers
            for t in np.flatnonzero(found.suspect):
                sources = training[found.candidates(int(t))]
                leak = _judge(texts, int(evaluated[at + t]), sources, found.covers[:, t], rules)
                if leak is not None:
                    leaks.append(leak)
            at += part.size
            tell(0.9 + 0.1 * (at - begin) / len(block))
    return Overlaps(cover_short=covers[0], cover_long=covers[1], leaks=tuple(leaks))


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Keys of some texts: of n-grams of two lengths, MinHash bands, and the whole text."""

    keys: UInt64[np.ndarray, " K"]
    text: Int[np.ndarray, " K"]
    kind: Int[np.ndarray, " K"]
    word: Int[np.ndarray, " K"]
    words: Words

    @property
    def size(self) -> int:
        return len(self.words.counts)


def _split(block: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(block), 8192):
        yield block[begin : begin + 8192]


def _list_keys(texts: list[str], rules: LeakRules) -> _Keys:
    words = hash_words(texts)
    text_of = np.repeat(np.arange(len(texts)), words.counts)
    parts = []
    for kind, n in enumerate((rules.short, rules.long)):
        hashes, first = hash_ngrams(words, n)
        parts.append((mix(hashes, seed=n), text_of[first], np.full(len(first), kind), first))
    present = np.flatnonzero(words.counts)
    bands = hash_bands(minhash_signatures(words))[present]
    owner = np.repeat(present, bands.shape[1])
    parts.append((bands.ravel(), owner, np.full(len(owner), 2), np.zeros(len(owner), int)))
    keys, text, kind, word = (np.concatenate(side) for side in zip(*parts, strict=True))
    return _Keys(keys=keys, text=text, kind=kind, word=word, words=words)


@dataclass(frozen=True, kw_only=True)
class _Found:
    covers: Float64[np.ndarray, "2 B"]
    suspect: Bool[np.ndarray, " B"]
    text: Int[np.ndarray, " F"]
    owner: Int[np.ndarray, " F"]

    @staticmethod
    def look_up(keys: _Keys, owners: FirstOwners, rules: LeakRules) -> _Found:
        owner = owners.look_up(keys.keys)
        hit = owner >= 0
        counts = np.maximum(keys.words.counts, 1)
        covers = np.zeros((2, keys.size))
        for kind, n in enumerate((rules.short, rules.long)):
            first = keys.word[hit & (keys.kind == kind)]
            steps = np.zeros(len(keys.words.hashes) + 1, int)
            np.add.at(steps, first, 1)
            np.add.at(steps, first + n, -1)
            inside = np.concatenate([[0], np.cumsum(np.cumsum(steps)[:-1] > 0)])
            covers[kind] = np.diff(inside[keys.words.starts]) / counts
        suspect = (covers[1] > 0) | (covers[0] >= rules.cover)
        suspect[keys.text[hit & (keys.kind == 2)]] = True
        # Sorted by text, so that those of one text are a slice.
        order = np.flatnonzero(hit)[np.argsort(keys.text[hit], kind="stable")]
        return _Found(covers=covers, suspect=suspect, text=keys.text[order], owner=owner[order])

    def candidates(self, text: int) -> Int[np.ndarray, " n"]:
        begin, end = np.searchsorted(self.text, [text, text + 1])
        names, count = np.unique(self.owner[begin:end], return_counts=True)
        return names[np.argsort(-count, kind="stable")[:_CANDIDATES]]


def _judge(
    texts: TextStore,
    text: int,
    sources: Int[np.ndarray, " n"],
    covers: Float64[np.ndarray, " 2"],
    rules: LeakRules,
) -> Leak | None:
    """The leak that a suspect is, by the texts themselves."""
    here = texts[text]
    pairs = [(jaccard(here, texts[int(source)]), -place) for place, source in enumerate(sources)]
    similarity, place = max(pairs)
    source = int(sources[-place])
    there = texts[source]
    kinds = {
        "same words": fold_text(here) == fold_text(there),
        f"{rules.long}-gram": covers[1] > 0,
        f"{rules.short}-gram cover": covers[0] >= rules.cover,
        "near duplicate": similarity >= rules.similarity,
    }
    if not any(kinds.values()):
        return None
    return Leak(
        text=text,
        source=source,
        kinds=tuple(kind for kind, holds in kinds.items() if holds),
        cover_short=float(covers[0]),
        cover_long=float(covers[1]),
        similarity=similarity,
        shared=find_shared_run(here, there),
    )


def find_shared_run(a: str, b: str, limit: int = 2_000) -> str:
    """The longest run of words that both texts have, of their first `limit` words.

    >>> find_shared_run("Then the old dog barked.", "An old dog barked, then")
    'old dog barked'
    """
    one, other = fold_text(a).split()[:limit], fold_text(b).split()[:limit]
    low, high, best = 0, min(len(one), len(other)), 0
    while low < high:
        size = (low + high + 1) // 2
        place = _find_common(one, other, size)
        low, high, best = (size, high, place) if place >= 0 else (low, size - 1, best)
    return " ".join(one[best : best + low])


def _find_common(one: list[str], other: list[str], size: int) -> int:
    """Where the first run of so many words begins in `one` that `other` has too, or -1."""
    runs = {tuple(other[i : i + size]) for i in range(len(other) - size + 1)}
    places = range(len(one) - size + 1)
    return next((i for i in places if tuple(one[i : i + size]) in runs), -1)
