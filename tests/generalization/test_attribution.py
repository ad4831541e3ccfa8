"""Identities of attribution by hypothesis; the marginal against enumeration of a joint."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.generalization.attribution import (
    conditional_attribution,
    following_difficulty,
    pointwise_v_information,
    v_information,
)
from instructjax.generalization.marginal import marginal_attribution, marginal_token_log_probs
from instructjax.generalization.min_k import log_prob_moments, min_k_log_prob, min_k_pp

nats = st.floats(-60, -0.0078125, width=32)
four = st.lists(st.tuples(nats, nats, nats, nats), min_size=5, max_size=5)


@settings(max_examples=60)
@given(four)
def test_identities(rows) -> None:
    cz, c, z, none = np.array(rows, np.float32).T
    a = conditional_attribution(cz, c, z, none)
    close = partial(np.testing.assert_allclose, atol=2e-4)
    close(a.shapley_instruction + a.shapley_input, a.total)
    close(a.instruction_given_input, a.instruction_alone + a.interaction)
    close(a.input_given_instruction, a.input_alone + a.interaction)
    chain = a.instruction_alone + a.input_given_instruction
    close(chain, a.total)
    # c and z changing places changes c's numbers for z's
    b = conditional_attribution(cz, z, c, none)
    close(b.shapley_instruction, a.shapley_input)
    close(b.interaction, a.interaction)


@settings(max_examples=30)
@given(four)
def test_shapley_is_the_mean_over_orders(rows) -> None:
    cz, c, z, none = np.array(rows, np.float64).T
    first, second = c - none, cz - z  # what c adds when it comes first, and when it comes second
    found = conditional_attribution(*np.array(rows, np.float32).T)
    np.testing.assert_allclose(found.shapley_instruction, (first + second) / 2, atol=1e-4)


def test_tokens_add_up_under_jit() -> None:
    rng = np.random.default_rng(0)
    tokens = -rng.random((4, 3, 7)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4], [1]])
    by_token = jax.jit(conditional_attribution)(*tokens, mask)
    whole = conditional_attribution(*np.where(mask, tokens, 0).sum(-1))
    for part, all_of_it in zip(by_token, whole, strict=True):
        np.testing.assert_allclose(part.sum(-1), all_of_it, atol=1e-5)
        assert (np.asarray(part)[~mask] == 0).all()


def test_following_difficulty_is_the_ratio_of_perplexities() -> None:
    cz, z, none, length = -12.0, -15.0, -30.0, 6
    found = following_difficulty(jnp.array(cz), jnp.array(z), jnp.array(none), jnp.array(length))
    ppl = {k: np.exp(-v / length) for k, v in (("cz", cz), ("z", z), ("none", none))}
    assert float(found.nll) == pytest.approx((cz / length) / (none / length))
    assert float(found.perplexity) == pytest.approx(ppl["cz"] / ppl["none"], rel=1e-5)
    assert float(found.instruction_nll) == pytest.approx(cz / z)
    assert float(found.instruction_perplexity) == pytest.approx(ppl["cz"] / ppl["z"], rel=1e-5)


def test_v_information_is_the_mean_in_bits() -> None:
    p, q = np.array([0.9, 0.2, 0.7], np.float32), np.array([0.5, 0.4, 0.1], np.float32)
    pvi = pointwise_v_information(np.log(p), np.log(q))
    np.testing.assert_allclose(pvi, np.log2(p / q), rtol=1e-5)
    mask = np.array([True, False, True])
    expected = np.log2(p / q)[mask].mean()
    assert float(v_information(np.log(p), np.log(q), mask)) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([2, 4]), st.just(5))
def test_marginal_is_that_of_the_joint(seed: int, c: int, y: int) -> None:
    """All y of a small space as responses: Bayes by hand, and mutual information as a sum."""
    rng = np.random.default_rng(seed)
    prior, table = rng.dirichlet(np.ones(c)), rng.dirichlet(np.ones(y), size=c)
    log_prob = np.log(table + 1e-6)[:, :, None].astype(np.float32)
    found = marginal_attribution(log_prob, np.log(prior + 1e-9).astype(np.float32))
    joint = prior[:, None] * table
    np.testing.assert_allclose(np.exp(found.log_marginal[:, 0]), joint.sum(0), atol=1e-4)
    np.testing.assert_allclose(np.exp(found.log_posterior[..., 0]), joint / joint.sum(0), atol=2e-3)
    np.testing.assert_allclose(np.exp(found.log_posterior).sum(0), 1, atol=1e-4)
    information = (joint * found.pmi[..., 0]).sum()
    entropy = -(prior * np.log(prior + 1e-12)).sum()
    assert -1e-3 <= information <= entropy + 1e-3


@pytest.mark.slow
def test_information_estimated_from_samples_is_the_exact_one() -> None:
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.ones(4), size=3)
    samples = np.stack([rng.choice(4, size=6000, p=row) for row in table])  # [C, Z]
    log_prob = np.log(table[:, samples]).astype(np.float32)
    found = marginal_attribution(log_prob)
    mixed = table.mean(0)
    exact = (table * np.log(table / mixed)).sum() / 3
    assert float(found.information.mean()) == pytest.approx(exact, abs=0.02)
    right = sum(table[c, y] for y in range(4) for c in [table[:, y].argmax()]) / 3
    assert float(found.identified.mean()) == pytest.approx(right, abs=0.02)


def test_marginal_tokens_add_up_to_the_marginal() -> None:
    rng = np.random.default_rng(2)
    tokens = -rng.random((3, 2, 5)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    prior = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    by_token, posterior = jax.jit(marginal_token_log_probs)(tokens, mask, prior)
    sums = np.where(mask, tokens, 0).sum(-1).astype(np.float64)
    expected = np.log((np.exp(sums) * np.exp(prior)[:, None]).sum(0))
    np.testing.assert_allclose(by_token.sum(-1), expected, atol=1e-5)
    whole = marginal_attribution(sums[:, None, :].astype(np.float32), prior)
    np.testing.assert_allclose(posterior[:, :, -1], whole.log_posterior[:, 0], atol=1e-5)


def test_min_k_is_a_loop() -> None:
    rng = np.random.default_rng(3)
    logs = np.log(rng.dirichlet(np.ones(11), size=(4, 9)))
    token = logs[..., 0]
    mask = np.arange(9) < np.array([[9], [5], [2], [1]])
    mu = (np.exp(logs) * logs).sum(-1)
    sigma = np.sqrt((np.exp(logs) * logs**2).sum(-1) - mu**2)
    found_mu, found_sigma = jax.jit(log_prob_moments)(logs.astype(np.float32))
    np.testing.assert_allclose(found_mu, mu, atol=1e-5)
    np.testing.assert_allclose(found_sigma, sigma, atol=1e-4)
    arrays = [x.astype(np.float32) for x in (token, mu, sigma)]
    plain = jax.jit(min_k_log_prob, static_argnums=2)(arrays[0], mask, 0.4)
    plus = jax.jit(min_k_pp, static_argnums=4)(*arrays, mask, 0.4)
    for row, length in enumerate(mask.sum(1)):
        count = max(int(0.4 * length), 1)
        assert float(plain[row]) == pytest.approx(
            np.sort(token[row, :length])[:count].mean(), rel=1e-4
        )
        standard = ((token - mu) / sigma)[row, :length]
        assert float(plus[row]) == pytest.approx(np.sort(standard)[:count].mean(), rel=1e-3)


def test_an_impossible_token_is_the_least_likely_of_all() -> None:
    scores = jnp.array([[-jnp.inf, -1.0], [-2.0, -1.0], [-3.0, -4.0]])
    mask = jnp.array([[True, True], [True, True], [False, False]])
    found = min_k_log_prob(scores, mask, 0.5)
    assert found[0] == -jnp.inf and found[1] == -2.0 and jnp.isnan(found[2])


@pytest.mark.slow
def test_moments_of_a_model_are_those_of_its_next_token_distributions(tiny_model) -> None:
    from instructjax.batching.batch import batch_from_lengths
    from instructjax.generalization.min_k import next_token_moments
    from instructjax.scoring.log_probs import next_token_log_probs, token_scores

    ids = np.random.default_rng(4).integers(0, 300, (2, 12)).astype(np.int32)
    batch = batch_from_lengths(jnp.asarray(ids), jnp.array([4, 6]), jnp.array([12, 10]))
    model = (tiny_model.graphdef, tiny_model.params)
    mu, sigma = next_token_moments(*model, batch, chunk=3)
    scores = token_scores(*model, batch)
    np.testing.assert_allclose(mu, -scores.entropy, atol=1e-4)
    logs = np.asarray(next_token_log_probs(*model, batch, jnp.arange(12)), np.float64)
    for row, (start, stop) in enumerate(((4, 12), (6, 10))):
        p = logs[row, start - 1 : stop - 1]
        mean = (np.exp(p) * p).sum(-1)
        expected = np.sqrt((np.exp(p) * (p - mean[:, None]) ** 2).sum(-1))
        np.testing.assert_allclose(sigma[row, : stop - start], expected, atol=1e-4)
        assert (np.asarray(sigma)[row, stop - start :] == 0).all()
