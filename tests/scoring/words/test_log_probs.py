"""Words: which tokens they are, sums, and that corrected probabilities are probabilities."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import Example
from instructjax.errors import UsageError
from instructjax.prompts import Tokenizer
from instructjax.scoring import score, word_log_probs
from instructjax.scoring.words.spans import describe_vocabulary, find_words

VOCAB = {"a": 0, "b": 1, "Ġa": 2, "Ġb": 3, "Ġ": 4, "<end>": 5}
END = 5


def spans(texts: list[str], ends: int = 0) -> list[tuple[int, int]]:
    control = np.array([False] * (len(texts) - ends) + [True] * ends, np.bool_)
    return [word.span for word in find_words(texts, control)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["The", " cat", "s", "."], [(0, 1), (1, 4)]),
        ([" The", " cat"], [(0, 1), (1, 2)]),
        (["a", " ", " b"], [(0, 1), (1, 3)]),
        (["a", "\n", "b"], [(0, 1), (1, 3)]),
        (["a", ".\n", "b", "c"], [(0, 2), (2, 4)]),
        (["a", ".\n", " b"], [(0, 2), (2, 3)]),
        (["a", " \n"], [(0, 1), (1, 2)]),
        ([" ", "a"], [(0, 2)]),
        (["a b", "c"], [(0, 2)]),
        ([], []),
    ],
)
def test_words_of_tokens(texts: list[str], expected: list[tuple[int, int]]) -> None:
    assert spans(texts) == expected
    if texts:
        n = len(texts)
        assert spans([*texts, "<end>"], ends=1) == [*expected, (n, n + 1)]


@given(st.text("ab. \n", min_size=1), st.data())
def test_words_are_those_of_split(text: str, data: Any) -> None:
    # Cut where no token holds the end of one word and the start of another.
    cuts = [0, *(i for i in range(1, len(text)) if data.draw(st.booleans())), len(text)]
    tokens = [text[i:j] for i, j in itertools.pairwise(cuts)]
    whole = all(len(token.split()) <= 1 for token in tokens)
    found = ["".join(tokens[i:j]) for i, j in spans(tokens)]
    assert "".join(found) == text
    inside = [token.strip() != "" and token[-1].isspace() for token in tokens]
    if whole and not any(inside):
        assert [word.strip() for word in found if word.strip()] == text.split()


@pytest.fixture(scope="module")
def toy(random_model: Any) -> Any:
    """Six tokens: words of a and b, with a space before all but the first."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(VOCAB, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    # Two rows of the table have no token: real checkpoints are padded so.
    model = random_model(seed=3, vocab_size=8)
    tokenizer = Tokenizer(backend, eos_ids=(END,), special_ids=frozenset({END}))
    return dataclasses.replace(model, tokenizer=tokenizer)


def test_kinds_of_tokens(toy: Any) -> None:
    kinds = describe_vocabulary(toy.tokenizer, 8)
    assert np.flatnonzero(kinds.starts_word).tolist() == [2, 3, 4]
    assert np.flatnonzero(kinds.control).tolist() == [5, 6, 7]


def all_words(first: bool, length: int) -> list[list[int]]:
    """Every word of at most so many tokens: letters, with a space token before or in the first."""
    words = []
    for n in range(1, length + 1):
        starts = [[0], [1], [2], [3]] if first else [[2], [3]]
        for start in starts:
            words += [[*start, *rest] for rest in itertools.product([0, 1], repeat=n - 1)]
    return words


@pytest.mark.parametrize("before", [[], [0, 1], [2]])
def test_corrected_words_are_a_distribution(toy: Any, decode_by_hand: Any, before: Any) -> None:
    # Over all words of up to four tokens, the longer ones, white space, and the end, the
    # probabilities sum to 1; the uncorrected ones do not.
    prompt, depth = [0, 3], 4
    words = all_words(not before, depth)
    examples = [Example(prompt_ids=prompt, output_ids=[*before, *word]) for word in words]
    sums = {}
    for correction in (False, True):
        found = word_log_probs(toy, examples, correction=correction)
        assert {len(one) for one in found} == {1 + bool(before)}
        sums[correction] = math.fsum(math.exp(one.log_prob[-1]) for one in found)

    def probs(ids: list[int]) -> np.ndarray:
        return np.exp(decode_by_hand(toy, [*prompt, *before, *ids])[-1])

    start = probs([])
    mass = start[[2, 3, 4, 5, 6, 7]].sum() if before else 1.0
    # What is left: the text ends here, white space stands alone, or the word is longer.
    rest = start[[4, 5, 6, 7]].sum() / mass
    for word in words:
        if len(word) == depth:
            logs = decode_by_hand(toy, [*prompt, *before, *word])
            at = len(prompt) + len(before) - 1
            p = math.exp(sum(logs[at + i, token] for i, token in enumerate(word)))
            rest += p * probs(word)[[0, 1]].sum() / mass
    assert sums[True] + rest == pytest.approx(1, abs=1e-5)
    assert abs(sums[False] + rest - 1) > 1e-3


def test_corrected_words_sum_to_the_response(toy: Any) -> None:
    y = [0, 1, 2, 4, 3, 0, END]
    example = Example(prompt_ids=[0, 3], output_ids=y)
    total = score(toy, example, progress=False).log_prob[0]
    for correction in (False, True):
        (found,) = word_log_probs(toy, example, correction=correction)
        assert found.words == ("ab", " a", "  ba", "<end>")
        assert found.spans == ((0, 2), (2, 3), (3, 6), (6, 7))
        assert math.fsum(found.log_prob) == pytest.approx(total, abs=1e-4)
        assert found.corrected is correction
        np.testing.assert_allclose(found.surprisal_nats, -found.log_prob)
        np.testing.assert_allclose(found.surprisal_bits * math.log(2), -found.log_prob)


def test_each_correction_by_hand(toy: Any, decode_by_hand: Any) -> None:
    prompt, y = [0, 3], [0, 1, 2, 4, 3, 0]
    plain, corrected = (
        word_log_probs(toy, Example(prompt_ids=prompt, output_ids=y), correction=c)[0]
        for c in (False, True)
    )
    p = np.exp(decode_by_hand(toy, [*prompt, *y]))
    # After "ab", " a" and "  ba" a word begins with a space, or the text ends.
    log_b = [math.log(p[len(prompt) - 1 + n, [2, 3, 4, 5, 6, 7]].sum()) for n in (2, 3, 6)]
    expected = [log_b[0], log_b[1] - log_b[0], log_b[2] - log_b[1]]
    np.testing.assert_allclose(corrected.log_prob - plain.log_prob, expected, atol=2e-5)


def test_white_space_at_the_end_can_only_be_followed_by_the_end(
    toy: Any, decode_by_hand: Any
) -> None:
    prompt, y = [0, 3], [0, 4]
    plain, corrected = (
        word_log_probs(toy, Example(prompt_ids=prompt, output_ids=y), correction=c)[0]
        for c in (False, True)
    )
    p = np.exp(decode_by_hand(toy, [*prompt, *y]))
    log_b = math.log(p[2, 2:].sum()), math.log(p[3, 5:].sum())
    np.testing.assert_allclose(
        corrected.log_prob - plain.log_prob, [log_b[0], log_b[1] - log_b[0]], atol=2e-5
    )


def test_texts_candidates_and_contexts(tiny_model: Any) -> None:
    example = Example(instruction="Add.", input="1 and 2", output=["the cat sat.", "3"], id="q")
    first, second = word_log_probs(tiny_model, [example], correction=True, context="c")
    assert first.words == ("the", " cat", " sat.", "<|im_end|>")
    assert (second.words, second.candidate, second.id) == (("3", "<|im_end|>"), 1, "q")
    totals = score(tiny_model, [example], contexts="c", progress=False).log_prob
    found = [math.fsum(first.log_prob), math.fsum(second.log_prob)]
    np.testing.assert_allclose(found, totals, atol=1e-4)
    open_end = word_log_probs(tiny_model, example, correction=True, include_eos=False, context="c")
    # Without its end, y's probability times that of the last word being over.
    plain = word_log_probs(tiny_model, example, include_eos=False, context="c")
    assert math.fsum(open_end[0].log_prob) < math.fsum(plain[0].log_prob)


def test_white_space_in_several_tokens(random_model: Any) -> None:
    """U+3000 is three bytes, and a byte-level tokenizer may have a token for each."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate([*alphabet, "<end>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = Tokenizer(backend, eos_ids=(256,), special_ids=frozenset({256}))
    model = dataclasses.replace(random_model(vocab_size=257), tokenizer=tokenizer)
    text = "晴れ\u3000雨\u00a0\u3000b\u2028"
    example = Example(instruction="a", output=text)
    options: dict[str, Any] = {"layout": "raw", "include_eos": False}
    (plain,) = word_log_probs(model, example, **options)
    assert plain.words == ("晴れ", "\u3000雨", "\u00a0\u3000b", "\u2028")
    assert [stop - start for start, stop in plain.spans] == [6, 6, 6, 3]
    assert plain.status == "ok"
    assert word_log_probs(model, example, correction=True, **options)[0].status == "split_space"
    spaced = Example(instruction="a", output="a b")
    assert word_log_probs(model, spaced, correction=True, **options)[0].status == "ok"


def test_what_was_cut_is_told(tiny_model: Any) -> None:
    example = Example(instruction="Add. " * 40, output=["3"])
    options: dict[str, Any] = {"truncation": "left", "max_length": 60}
    (found,) = word_log_probs(tiny_model, example, **options)
    assert found.status == score(tiny_model, example, progress=False, **options).status[0] != "ok"


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (None, "examples are of type NoneType"),
        ([Example(instruction="Add.", output="2"), "Add."], "row 2 is of type str"),
    ],
)
def test_what_is_no_example(tiny_model: Any, examples: Any, words: str) -> None:
    # Without its check of types, which a user does not have.
    with pytest.raises(UsageError, match=words):
        inspect.unwrap(word_log_probs)(tiny_model, examples)
