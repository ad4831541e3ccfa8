"""Divergences of next-token distributions: identities, loops in float64, contexts, two models."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data import Example
from instructjax.errors import DataError, ModelError, UsageError
from instructjax.scoring import (
    hidden,
    hidden_divergences,
    kl_divergence,
    next_token_js,
    next_token_kl,
    score,
    vocabulary,
)
from instructjax.scoring.vocabulary import COLUMNS, ROWS

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5)


def kl_by_hand(p: Any, q: Any) -> float:
    """Of two rows of log-probabilities, straight from the definition, in float64."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def normalize(logits: Any) -> np.ndarray:
    x = np.asarray(logits, np.float64)
    return (
        x
        - x.max(-1, keepdims=True)
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


@given(LOGITS, LOGITS)
def test_kl_is_the_definition_and_not_negative(p: list[float], q: list[float]) -> None:
    found = float(next_token_kl(jnp.array(p, jnp.float32), jnp.array(q, jnp.float32)))
    expected = kl_by_hand(normalize(p), normalize(q))
    assert found >= 0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    js = float(next_token_js(jnp.array(p, jnp.float32), jnp.array(q, jnp.float32)))
    mean = np.logaddexp(normalize(p), normalize(q)) - math.log(2)
    expected = (kl_by_hand(normalize(p), mean) + kl_by_hand(normalize(q), mean)) / 2
    assert 0 <= js <= math.log(2) + 1e-6
    assert js == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(LOGITS, st.floats(-100, 100, width=32))
def test_kl_of_p_from_itself_is_zero(p: list[float], shift: float) -> None:
    logits = jnp.array(p, jnp.float32)
    assert float(next_token_kl(logits, logits)) == 0
    assert float(next_token_js(logits, logits)) == pytest.approx(0, abs=1e-12)
    assert float(next_token_kl(logits, logits + shift)) == pytest.approx(0, abs=1e-8)


def test_small_divergences_keep_their_digits() -> None:
    # log p - log q of 1e-4: the textbook sum in float32 would have no correct digit.
    rng = np.random.default_rng(0)
    p = rng.normal(0, 2, (3, 50_000))
    q = p + rng.normal(0, 1e-4, p.shape)
    expected = [kl_by_hand(a, b) for a, b in zip(normalize(p), normalize(q), strict=True)]
    assert max(expected) < 1e-8
    found = next_token_kl(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
    # The logits themselves are rounded to float32, by up to 2e-7 each.
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_zeros() -> None:
    p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
    assert float(next_token_kl(p, q)) == pytest.approx(math.log(2))
    assert float(next_token_kl(q, p)) == math.inf
    assert float(next_token_kl(p, p)) == 0


@pytest.mark.parametrize(
    ("rows", "vocab", "tile"), [(1, 41, 41), (ROWS + 3, 41, 16), (5, 64, 16), (2, 33, 32)]
)
def test_from_hidden_states(
    monkeypatch: pytest.MonkeyPatch, rows: int, vocab: int, tile: int
) -> None:
    # The vocabulary in one tile, in tiles with a last one that overlaps, and in tiles that fit.
    monkeypatch.setattr(vocabulary, "COLUMNS", tile)
    rng = np.random.default_rng(rows)
    h, g = (rng.normal(size=(rows, e)).astype(np.float32) for e in (6, 4))
    w, u = (rng.normal(size=(vocab, e)).astype(np.float32) for e in (6, 4))
    kl, js = jax.jit(hidden_divergences)(*map(jnp.asarray, (h, w, g, u)))
    p, q = normalize(h.astype(np.float64) @ w.T), normalize(g.astype(np.float64) @ u.T)
    mean = np.logaddexp(p, q) - math.log(2)
    np.testing.assert_allclose(
        kl, [kl_by_hand(a, b) for a, b in zip(p, q, strict=True)], rtol=1e-6, atol=1e-6
    )
    halves = [(kl_by_hand(a, m) + kl_by_hand(b, m)) / 2 for a, b, m in zip(p, q, mean, strict=True)]
    np.testing.assert_allclose(js, halves, rtol=1e-6, atol=1e-6)


def test_law_10_logits_exist_for_a_tile_only() -> None:
    vocab, rows = 100_003, 2048
    shapes = [(rows, 8), (vocab, 8)] * 2
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(hidden_divergences).lower(*args).compile().memory_analysis()
    if memory is None:
        pytest.skip("the backend does not tell")
    assert memory.temp_size_in_bytes < 12 * ROWS * COLUMNS * 4 < rows * vocab * 4 / 15


@pytest.fixture(scope="module")
def models(random_model: Any) -> tuple[Any, Any]:
    return random_model(seed=5), random_model(seed=6)


PROMPT, Y = [3, 17, 40, 2], [9, 9, 31, 55, 0]


def next_logs(model: Any, decode: Any, prompt: list[int], y: list[int]) -> np.ndarray:
    return decode(model, [*prompt, *y])[len(prompt) - 1 : -1]


def test_two_models_by_hand(models: Any, decode_by_hand: Any) -> None:
    a, b = models
    example = Example(prompt_ids=PROMPT, output_ids=[Y, Y[:2]])
    found = kl_divergence(a, example, model_q=b)
    p, q = (next_logs(m, decode_by_hand, PROMPT, Y) for m in models)
    expected = [kl_by_hand(x, y) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(found[0].kl, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1].kl, expected[:2], rtol=1e-3, atol=1e-5)
    assert found[0].token_ids.tolist() == Y and [row.candidate for row in found] == [0, 1]
    assert found[0].mean_kl == pytest.approx(np.mean(expected), rel=1e-3)
    both = [*expected, *expected[:2]]
    assert found.num_tokens == 7
    assert found.mean_kl == pytest.approx(np.mean(both), rel=1e-3)
    back = kl_divergence(b, example, model_q=a)
    expected = [kl_by_hand(y, x) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(back[0].kl, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(back[0].js, found[0].js, rtol=1e-4, atol=1e-6)
    same = kl_divergence(a, example, model_q=dataclasses.replace(a))
    assert not np.concatenate(same.kl).any()


def test_two_prompts_by_hand(models: Any, decode_by_hand: Any) -> None:
    other = [1, 2]
    found = kl_divergence(
        models[0],
        Example(prompt_ids=PROMPT, output_ids=Y),
        examples_q=Example(prompt_ids=other, output_ids=Y),
    )
    p, q = (next_logs(models[0], decode_by_hand, prompt, Y) for prompt in (PROMPT, other))
    expected = [kl_by_hand(x, y) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(found[0].kl, expected, rtol=1e-3, atol=1e-5)


def test_requests_are_packed(
    models: Any, monkeypatch: pytest.MonkeyPatch, decode_by_hand: Any
) -> None:
    # Two hundred y after one prompt of 40 tokens and after another of 30 that begins alike: few
    # rows, the shared prompt computed once, and every y gets its own numbers.
    rng = np.random.default_rng(7)
    prompt = rng.integers(0, 61, 40).tolist()
    responses = [rng.integers(0, 61, 1 + i % 9).tolist() for i in range(200)]
    rows = []
    real = hidden.pack

    def keep(requests: Any, **options: Any) -> Iterator[Any]:
        for row in real(requests, **options):
            rows.append(row)
            yield row

    monkeypatch.setattr(hidden, "pack", keep)
    found = kl_divergence(
        models[0],
        Example(prompt_ids=prompt, output_ids=responses),
        examples_q=Example(prompt_ids=prompt[:30], output_ids=responses),
    )
    tokens = sum(map(len, responses))
    assert sum(row.num_tokens for row in rows) < 3 * tokens + 100 < 200 * 70
    assert [row.token_ids.tolist() for row in found] == responses
    for i in (0, 77, 198):
        p, q = (
            next_logs(models[0], decode_by_hand, x, responses[i]) for x in (prompt, prompt[:30])
        )
        expected = [kl_by_hand(x, y) for x, y in zip(p, q, strict=True)]
        np.testing.assert_allclose(found[i].kl, expected, rtol=1e-3, atol=1e-5)


def test_windows_do_not_change_numbers(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(prompt_ids=[3, i], output_ids=[Y[: 1 + i % 5], Y[::-1]]) for i in range(6)]
    whole = kl_divergence(models[0], examples, model_q=models[1])
    monkeypatch.setattr(hidden, "WINDOW_TOKENS", 7)
    cut = kl_divergence(models[0], examples, model_q=models[1])
    assert [row.id for row in cut] == [row.id for row in whole]
    np.testing.assert_allclose(np.concatenate(cut.kl), np.concatenate(whole.kl), atol=1e-5)
    assert repr(cut).startswith("Divergences(12 responses, ")


def test_contexts(tiny_model: Any) -> None:
    example = Example(instruction="Add.", input="1 and 2", output=["3", "4 and more"], id="q")
    found = kl_divergence(tiny_model, [example], context_q="c")
    without = Example(instruction="Add.", output=["3", "4 and more"])
    twin = kl_divergence(tiny_model, [example], examples_q=[without])
    for row, other in zip(found, twin, strict=True):
        np.testing.assert_array_equal(row.kl, other.kl)
        assert row.id == "q" and (row.kl > 0).all() and len(row.kl) == len(row.token_ids)
    assert not np.concatenate(kl_divergence(tiny_model, [example]).kl).any()
    assert math.isnan(kl_divergence(tiny_model, []).mean_kl)
    assert found.status == ["ok", "ok"]


def test_what_was_cut_is_told_of_either_side(tiny_model: Any) -> None:
    long = Example(instruction="Add. " * 40, output=["3"])
    short = Example(instruction="Add. ", output=["3"])
    options: dict[str, Any] = {"truncation": "left", "max_length": 60}
    for pair in ((long, short), (short, long)):
        found = kl_divergence(tiny_model, [pair[0]], examples_q=[pair[1]], **options)
        (expected,) = score(tiny_model, long, progress=False, **options).status
        assert expected.startswith("truncated=") and found.status == [expected]
    row = dataclasses.replace(found[0], kl=found[0].kl + np.float32(np.inf), flags=())
    assert row.status == "not_finite"


def test_what_cannot_be_compared(models: Any, tiny_model: Any) -> None:
    ids = Example(prompt_ids=PROMPT, output_ids=Y)
    with pytest.raises(ModelError, match="different vocabularies"):
        kl_divergence(models[0], ids, model_q=tiny_model)
    other = Example(prompt_ids=PROMPT, output_ids=[*Y[:-1], 1])
    with pytest.raises(DataError, match="row 2: the two sides have different responses"):
        kl_divergence(models[0], [ids, ids], examples_q=[ids, other])
    with pytest.raises(UsageError, match="fewer examples_q"):
        kl_divergence(models[0], [ids, ids], examples_q=[ids])
    with pytest.raises(UsageError, match="unknown context"):
        kl_divergence(models[0], ids, context_q="zc")


@pytest.mark.parametrize(
    ("examples", "examples_q", "words"),
    [
        (None, None, "examples are of type NoneType"),
        (
            Example(instruction="Add.", output="2"),
            {"instruction": "Add."},
            "examples_q are of type dict",
        ),
        ([Example(instruction="Add.", output="2"), "Add."], None, "row 2 is of type str"),
        ([Example(instruction="Add.", output="2")], [None], "row 1 is of type NoneType"),
        ([Example(instruction="Add.", output="2")], [], "there are fewer examples_q"),
    ],
)
def test_what_is_no_example(tiny_model: Any, examples: Any, examples_q: Any, words: str) -> None:
    # Without its check of types, which a user does not have.
    with pytest.raises(UsageError, match=words):
        inspect.unwrap(kl_divergence)(tiny_model, examples, examples_q=examples_q)
