"""Sums of log-probabilities whose weights are known: value and gradient of the dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.scoring import log_prob_head
from instructjax.scoring.log_prob_head import weighted_log_prob


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    hidden, table = rng.standard_normal((9, 8)), rng.standard_normal((37, 8))
    sources, targets = rng.integers(0, 9, 14), rng.integers(0, 37, 14)
    weights = rng.standard_normal(14)
    return [jnp.asarray(x, jnp.float32) for x in (hidden, table, weights)], sources, targets


def dense(hidden, table, weights, sources, targets, count, softcap):
    logits = hidden[sources] @ table.T
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    logs = jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets]
    return (weights * logs)[:count].sum()


@pytest.mark.parametrize("rows", [5, 7, 256])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("count", [0, 11, 14])
def test_value_and_gradient_of_a_weighted_sum(arrays, rows, softcap, count, monkeypatch):
    """Over several chunks, the last not whole, and none; weights of either sign; a scaled sum."""
    monkeypatch.setattr(log_prob_head, "ROWS", rows)
    floats, sources, targets = arrays

    def total(hidden, table, weights):
        rest = jnp.asarray(sources), jnp.asarray(targets), weights, jnp.asarray(count)
        return -2.5 * weighted_log_prob(hidden, table, *rest, softcap=softcap)

    def wanted(hidden, table, weights):
        return -2.5 * dense(hidden, table, weights, sources, targets, count, softcap)

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*floats)
    expected, others = jax.value_and_grad(wanted, (0, 1, 2))(*floats)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(total(*floats), expected, atol=1e-4)  # not differentiated
    for found, other in zip(grads, others, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-4)


def test_gradients_of_bfloat16_are_near_those_of_float32(arrays):
    floats, sources, targets = arrays
    rest = jnp.asarray(sources), jnp.asarray(targets)

    def total(hidden, table, weights):
        return weighted_log_prob(hidden, table, *rest, weights, jnp.asarray(14))

    rounded = [x.astype(jnp.bfloat16) for x in floats[:2]]
    value, grads = jax.value_and_grad(total, (0, 1))(*rounded, floats[2])
    exact = [x.astype(jnp.float32) for x in rounded]
    expected, others = jax.value_and_grad(total, (0, 1))(*exact, floats[2])
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    for found, other in zip(grads, others, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), other, atol=0.03)


@pytest.mark.parametrize(("learned", "products"), [((0, 1), 3), (0, 2)])
def test_logits_are_computed_once(arrays, learned, products):
    """Products with the table: logits, and the gradients of those of their factors that learn."""
    floats, sources, targets = arrays
    rest = jnp.asarray(sources), jnp.asarray(targets), floats[2], jnp.asarray(14)
    graph = jax.make_jaxpr(jax.grad(weighted_log_prob, learned))(*floats[:2], *rest)
    assert str(graph).count("dot_general[") == products


@pytest.mark.parametrize("size", [1e2, 1e6, 1e8])
def test_two_large_logits_that_are_alike_share_all(size):
    def total(hidden, table):
        rest = jnp.array([0]), jnp.array([0]), jnp.ones(1), jnp.array(1)
        return weighted_log_prob(hidden, table, *rest)

    table = jnp.array([[1.0], [1.0], [0.0]])
    value, (d_hidden, d_table) = jax.value_and_grad(total, (0, 1))(jnp.array([[size]]), table)
    assert float(value) == pytest.approx(-np.log(2))
    assert d_hidden.tolist() == [[0.0]]
    np.testing.assert_allclose(d_table / size, [[0.5], [-0.5], [0.0]])


@pytest.mark.parametrize("rows", [5, 256])
def test_what_nobody_scores_reaches_no_gradient(arrays, rows, monkeypatch):
    """Hidden states and weights past the count may be anything."""
    monkeypatch.setattr(log_prob_head, "ROWS", rows)
    (hidden, table, weights), sources, targets = arrays
    sources = np.where(sources == 0, 1, sources)
    sources[11:] = 0

    def total(hidden, table, weights):
        rest = jnp.asarray(sources), jnp.asarray(targets), weights, jnp.asarray(11)
        return weighted_log_prob(hidden, table, *rest)

    both = jax.value_and_grad(total, (0, 1, 2))
    spoiled = hidden.at[0].set(jnp.nan), table, weights.at[11:].set(jnp.inf)
    found, expected = both(*spoiled), both(hidden, table, weights)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
