"""Leaks against a brute-force twin on sets of words, MinHash against datasketch and its theory."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.generalization import leaks as leaks_module
from instructjax.generalization.leaks import LeakRules, find_leaks, find_shared_run
from instructjax.generalization.minhash import (
    estimate_jaccard,
    hash_bands,
    jaccard,
    minhash_signatures,
)
from instructjax.generalization.text_store import TextStore
from instructjax.generalization.word_hashes import fold_text, hash_ngrams, hash_words


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = fold_text(text).split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def cover(text: str, known: set[tuple[str, ...]], n: int) -> float:
    """Share of words in n-grams that are known, by marking words."""
    words = fold_text(text).split()
    marked = [False] * len(words)
    for i, gram in enumerate(ngrams(text, n)):
        if gram in known:
            marked[i : i + n] = [True] * n
    return sum(marked) / max(len(words), 1)


def make_text(rng: random.Random, length: int, vocabulary: int = 12) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(length))


WORDS = st.lists(st.sampled_from(["a", "b", "Ä", "don't", "x_1", "…", "", "7"]), max_size=12)


@given(st.lists(WORDS.map(" ".join), max_size=6))
def test_words_are_those_of_the_folded_text(texts: list[str]) -> None:
    words = hash_words(texts)
    assert words.counts.tolist() == [len(fold_text(text).split()) for text in texts]
    flat = [word for text in texts for word in fold_text(text).split()]
    for i in range(len(flat)):
        for j in range(i):
            assert (flat[i] == flat[j]) == (words.hashes[i] == words.hashes[j])


def test_ngrams_are_equal_where_their_words_are() -> None:
    rng = random.Random(0)
    texts = [make_text(rng, n, 3) for n in (0, 1, 2, 3, 40, 5, 60)]
    hashes, first = hash_ngrams(hash_words(texts), 3)
    grams = [gram for text in texts for gram in ngrams(text, 3)]
    assert len(grams) == len(hashes) == len(first)
    assert len({*hashes.tolist()}) == len({*grams})
    assert len({*zip(hashes.tolist(), grams, strict=True)}) == len({*grams})


@pytest.mark.parametrize("blocks", [1, 5])
def test_covers_equal_the_twin(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks > 1:  # many passes, many chunks
        monkeypatch.setattr(leaks_module, "EVAL_BYTES", 2_000)
        monkeypatch.setattr(leaks_module, "TRAIN_BYTES", 700)
    rng = random.Random(1)
    train = [make_text(rng, rng.randrange(30), 4) for _ in range(60)]
    test = [make_text(rng, rng.randrange(30), 4) for _ in range(40)] + [train[3], ""]
    rules = LeakRules(short=4, long=7)
    with TextStore([*train, *test]) as texts:
        places = np.arange(len(train), len(train) + len(test))
        found = find_leaks(texts, places, np.arange(len(train)), rules)
    for n, covers in ((4, found.cover_short), (7, found.cover_long)):
        known = {gram for text in train for gram in ngrams(text, n)}
        np.testing.assert_allclose(covers, [cover(text, known, n) for text in test], atol=1e-12)
    named = {leak.text - len(train) for leak in found.leaks}
    must = {i for i in range(len(test)) if found.cover_long[i] > 0 or found.cover_short[i] >= 0.5}
    assert must <= named
    for leak in found.leaks:
        there = train[leak.source]
        assert leak.similarity == jaccard(test[leak.text - len(train)], there)
        assert leak.shared in " ".join(fold_text(there).split())


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(2)
    train = [make_text(rng, 60, 5_000) for _ in range(300)]
    planted = []
    for text in train[:40]:
        words = text.split()
        words[rng.randrange(60)] = "changed"  # no shingle of 3 elsewhere is lost
        planted.append(" ".join(words))
    fresh = [make_text(rng, 60, 5_000) for _ in range(100)]
    with TextStore([*train, *planted, *fresh]) as texts:
        found = find_leaks(texts, np.arange(300, 440), np.arange(300)).leaks
    assert [(leak.text - 300, leak.source) for leak in found] == [(i, i) for i in range(40)]
    assert all("near duplicate" in leak.kinds for leak in found)


def test_short_texts_leak_by_their_words_alone() -> None:
    texts_in = ["Paris, France", "London", "paris france!", "Rome", "!!"]
    with TextStore(texts_in) as texts:
        found = find_leaks(texts, np.array([2, 3, 4]), np.array([0, 1])).leaks
    assert [(leak.text, leak.source, "same words" in leak.kinds) for leak in found] == [
        (2, 0, True)
    ]


def test_what_is_found_does_not_depend_on_the_order_of_training_texts_but_for_ties() -> None:
    rng = random.Random(3)
    train = [make_text(rng, 50, 2_000) for _ in range(50)]
    test = [train[k] + " more words" for k in (4, 8, 15)]
    with TextStore([*train, *test]) as texts:
        one = find_leaks(texts, np.arange(50, 53), np.arange(50)).leaks
        other = find_leaks(texts, np.arange(50, 53), np.arange(50)[::-1]).leaks
    assert one == other and [leak.source for leak in one] == [4, 8, 15]


def test_minhash_agrees_with_datasketch_within_its_error() -> None:
    from datasketch import MinHash

    rng = random.Random(4)
    base = [f"w{rng.randrange(10_000)}" for _ in range(80)]
    for replaced in (0, 4, 12, 40):
        words = list(base)
        for place in rng.sample(range(80), replaced):
            words[place] = f"v{place}"
        pair = [" ".join(base), " ".join(words)]
        truth = jaccard(*pair)
        signatures = minhash_signatures(hash_words(pair), permutations=256)
        ours = float(estimate_jaccard(signatures[:1], signatures[1:])[0])
        theirs = [MinHash(num_perm=256) for _ in pair]
        for sketch, text in zip(theirs, pair, strict=True):
            for gram in ngrams(text, 3):
                sketch.update(" ".join(gram).encode())
        error = 4 * (truth * (1 - truth) / 256) ** 0.5 + 1e-9
        assert abs(ours - truth) <= error
        assert abs(theirs[0].jaccard(theirs[1]) - truth) <= error


def test_bands_find_pairs_as_often_as_theory_says() -> None:
    rng = np.random.default_rng(5)
    # Signatures whose places agree with probability 0.6, as texts of Jaccard similarity 0.6 have.
    a = rng.integers(0, 2**60, (4_000, 64), dtype=np.uint64)
    b = np.where(rng.random(a.shape) < 0.6, a, a + np.uint64(1))
    found = (hash_bands(a) == hash_bands(b)).any(1).mean()
    expected = 1 - (1 - 0.6**4) ** 16
    assert abs(found - expected) < 4 * (expected * (1 - expected) / 4_000) ** 0.5


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abc"), max_size=14), st.lists(st.sampled_from("abc"), max_size=14))
def test_the_longest_shared_run(one: list[str], other: list[str]) -> None:
    runs = [
        one[i:j]
        for i in range(len(one))
        for j in range(i + 1, len(one) + 1)
        if " ".join(one[i:j]) in [" ".join(other[k : k + j - i]) for k in range(len(other))]
    ]
    longest = max((len(run) for run in runs), default=0)
    assert len(find_shared_run(" ".join(one), " ".join(other)).split()) == longest


@pytest.mark.parametrize(
    "text",
    [
        "请用一句话概括下面这份合同的主要内容和双方的义务",
        "次の契約書のおもな内容をひとつの文でまとめてください",
        "โปรดสรุปเนื้อหาสำคัญของสัญญาฉบับนี้เป็นประโยคเดียว",
        "ກະລຸນາສະຫຼຸບເນື້ອໃນສຳຄັນຂອງສັນຍາສະບັບນີ້",
        "សូមសង្ខេបខ្លឹមសារសំខាន់នៃកិច្ចសន្យានេះជាប្រយោគតែមួយ",
    ],
)
def test_scripts_without_spaces_have_leaks_too(text: str) -> None:
    """Every letter is a word; a text within another one is found."""
    letters = sum(character.isalnum() for character in unicodedata.normalize("NFKC", text))
    assert hash_words([text]).counts.tolist() == [letters]
    with TextStore([f"今日は {text[3:]}", text[:14], f"Заголовок. {text}.", "天气"]) as texts:
        found = find_leaks(texts, np.array([2, 3]), np.array([0, 1])).leaks
    assert [(leak.text, leak.source) for leak in found] == [(2, 0)]
    assert "13-gram" in found[0].kinds and found[0].cover_short > 0.7
