"""Draws against exact probabilities, and the rules against definitions written out in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from instructjax.sampling import PromptToSample, Sampler, SamplingRules
from instructjax.sampling.draw import apply_rules, draw, invert, to_values, uniform_of

RULES = {
    "temperature": SamplingRules(temperature=0.6),
    "top_k": SamplingRules(top_k=7),
    "top_p": SamplingRules(top_p=0.7),
    "min_p": SamplingRules(min_p=0.15),
    "penalty": SamplingRules(repetition_penalty=1.7),
    "all": SamplingRules(temperature=1.3, top_k=30, top_p=0.93, min_p=0.02, repetition_penalty=1.4),
}


def probabilities(logits: np.ndarray, seen: np.ndarray, rules: SamplingRules) -> np.ndarray:
    """The rules one token at a time, in float64, by sorting."""
    x = logits.astype(np.float64)
    x = np.where(
        seen, np.where(x < 0, x * rules.repetition_penalty, x / rules.repetition_penalty), x
    )
    if rules.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = x / rules.temperature
    keep = np.ones(len(x), bool)
    if rules.top_k:
        keep &= x >= np.sort(x)[::-1][min(rules.top_k, len(x)) - 1]
    p = np.where(keep, np.exp(x - x.max()), 0)
    p /= p.sum()
    if rules.top_p < 1:
        keep &= np.array([p[p > own].sum() < rules.top_p for own in p])
    keep &= x - x.max() >= np.log(rules.min_p) if rules.min_p else True
    p = np.where(keep, p, 0)
    return p / p.sum()


@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_written_out(name: str) -> None:
    rules, rng = RULES[name], np.random.default_rng(0)
    logits = (2 * rng.standard_normal((40, 300))).astype(np.float32)
    logits[:10] = np.round(logits[:10])  # ties
    seen = rng.random(logits.shape) < 0.3
    penalty = jnp.asarray(seen) if rules.repetition_penalty != 1 else None
    found = jax.nn.softmax(apply_rules(jnp.asarray(logits), penalty, to_values(rules)), -1)
    for row in range(40):
        expected = probabilities(logits[row], seen[row], rules)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=2e-6)


def flatten(model: Any) -> Any:
    """The model with a smaller head, so that no token has nearly all probability."""
    params = jax.tree.map_with_path(
        lambda path, x: 0.4 * x if "lm_head" in jax.tree_util.keystr(path) else x, model.params
    )
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize(
    "name",
    [name if name == "all" else pytest.param(name, marks=pytest.mark.slow) for name in RULES],
)
def test_frequencies_are_those_of_the_model(
    name: str, random_model: Any, decode_by_hand: Any
) -> None:
    """Two tokens after a prompt, drawn 1,000 times, by chi-square over all pairs."""
    rules = RULES[name]
    model = flatten(random_model(vocab_size=8, num_layers=1))
    ids = np.array([1, 5, 2, 5], np.int32)
    prompt = PromptToSample(ids=ids, name="a", num_samples=1000, max_new_tokens=2)
    made = list(Sampler(model, rules=rules, stop_ids=(), seed=3).sample([prompt]))

    def next_token(ids: list[int]) -> np.ndarray:
        seen = np.isin(np.arange(8), ids)
        return probabilities(decode_by_hand(model, ids, raw=True)[-1], seen, rules)

    first = next_token(ids.tolist())
    exact = np.array([first[a] * next_token([*ids, a]) for a in range(8)])
    counts = np.zeros((8, 8))
    for one in made:
        counts[one.ids[0], one.ids[1]] += 1
        logs = [np.log(first[one.ids[0]]), np.log(exact[tuple(one.ids)] / first[one.ids[0]])]
        np.testing.assert_allclose(one.sampling_log_probs, logs, atol=1e-4)
    assert counts[exact == 0].sum() == 0
    expected = exact * len(made)
    rare = expected < 5
    found = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 5:
        found, wanted = found[:-1], wanted[:-1] * found[:-1].sum() / wanted[:-1].sum()
    assert len(found) >= 3
    assert stats.chisquare(found, wanted).pvalue > 1e-3


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 256, 257, 700]))
def test_no_token_without_probability_is_drawn(seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.where(rng.random((4, vocab)) < 0.5, rng.random((4, vocab)), 0).astype(np.float32)
    p[:, rng.integers(vocab)] = 1e-30
    uniform = np.array([0, 0.5, 1 - 2**-24, rng.random()], np.float32)
    token, _ = invert(jnp.asarray(p), jnp.asarray(uniform))
    assert (p[np.arange(4), np.asarray(token)] > 0).all()


def test_numbers_beyond_float32_and_int32_are_the_nearest_that_are_not() -> None:
    logits = jnp.array([[1.0, 3.0, 2.0]])
    only = apply_rules(logits, None, to_values(SamplingRules(top_p=1e-50)))
    assert only.tolist() == [[-np.inf, 3.0, -np.inf]]
    assert apply_rules(logits, None, to_values(SamplingRules(top_k=10**12))).tolist() == [[1, 3, 2]]


def test_margins_say_what_would_choose_otherwise() -> None:
    p = jnp.array([[0.25, 0.0, 0.5, 0.25]] * 3)
    token, margin = invert(p, jnp.array([0.25 + 2**-12, 0.5, 0.2]))
    assert token.tolist() == [2, 2, 0]
    np.testing.assert_allclose(margin, [2**-12, 0.25, 0.05], atol=1e-7)
    logits = jnp.array([[1.0, 3.0, 2.75]])
    drawn = draw(logits, jnp.zeros(1), None, to_values(SamplingRules(temperature=0)))
    assert (drawn.token.tolist(), drawn.margin.tolist()) == ([1], [0.25])


def test_uniforms_of_keys_and_places_are_apart() -> None:
    keys = np.random.default_rng(0).integers(0, 2**32, (50, 2), dtype=np.uint32)
    found = np.array([uniform_of(jnp.asarray(keys), jnp.full(50, n)) for n in range(20)])
    assert len(np.unique(found)) == 1000 and 0 <= found.min() < found.max() < 1
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-3
