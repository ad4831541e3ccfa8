"""The pure functions: shapes, masks, sums, and numbers against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batching.batch import batch_from_lengths
from instructjax.scoring.log_probs import (
    next_token_log_probs,
    scored_mask,
    sequence_log_probs,
    token_log_probs,
    token_scores,
)

PROMPTS, LENGTHS = (3, 1, 5, 9), (9, 14, 6, 9)


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(seed=21, num_layers=1)


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 61, (4, 14), dtype=np.int32)
    # Traced, since the last row has nothing to score.
    make = jax.jit(batch_from_lengths, static_argnames="tile")
    return make(jnp.asarray(tokens), jnp.array(PROMPTS), jnp.array(LENGTHS), tile=8)


@pytest.fixture(scope="module")
def scores(model, batch):
    return jax.jit(token_scores, static_argnames="top_k")(
        model.graphdef, model.params, batch, top_k=4
    )


def test_every_score_is_that_of_numpy(model, batch, scores, decode_by_hand):
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        ids = np.asarray(batch.tokens[row, :length])
        logs = decode_by_hand(model, ids)[prompt - 1 : length - 1]
        count = length - prompt
        own = logs[np.arange(count), ids[prompt:]]
        np.testing.assert_allclose(scores.log_prob[row, :count], own, atol=2e-5)
        np.testing.assert_allclose(
            scores.entropy[row, :count], -(np.exp(logs) * logs).sum(-1), atol=2e-5
        )
        np.testing.assert_array_equal(scores.rank[row, :count], (logs > own[:, None]).sum(-1) + 1)
        order = np.argsort(-logs, axis=-1)[:, :4]
        np.testing.assert_array_equal(scores.top_ids[row, :count], order)
        np.testing.assert_allclose(
            scores.top_log_probs[row, :count], np.take_along_axis(logs, order, -1), atol=2e-5
        )


def test_shapes_and_zeros_past_what_is_scored(batch, scores):
    mask = np.asarray(scored_mask(batch))
    assert mask.sum(-1).tolist() == [6, 13, 1, 0]
    assert scores.log_prob.shape == (4, 14) and scores.top_ids.shape == (4, 14, 4)
    for leaf in jax.tree.leaves(scores):
        assert not np.asarray(leaf)[~mask].any()
    assert (np.asarray(scores.log_prob)[mask] < 0).all()
    assert (np.asarray(scores.rank)[mask] >= 1).all()


def test_sequence_log_probs_are_sums_of_tokens(model, batch, scores):
    total = jax.jit(sequence_log_probs)(model.graphdef, model.params, batch)
    each = jax.jit(token_log_probs)(model.graphdef, model.params, batch)
    np.testing.assert_allclose(each, scores.log_prob, atol=1e-5)
    np.testing.assert_allclose(total, np.asarray(each).sum(-1), rtol=1e-6)
    assert total[3] == 0


def test_greedy_is_rank_one_and_the_first_alternative(batch, scores):
    mask = np.asarray(scored_mask(batch))
    greedy = np.asarray(scores.greedy)[mask]
    np.testing.assert_array_equal(greedy, np.asarray(scores.rank)[mask] == 1)
    first = np.asarray(scores.top_ids)[..., 0] == np.asarray(batch.targets)
    np.testing.assert_array_equal(greedy, first[mask])


def test_next_token_log_probs_take_the_positions_asked_for(model, batch, decode_by_hand):
    logs = next_token_log_probs(model.graphdef, model.params, batch, jnp.array([8, 0, 3]))
    assert logs.shape == (4, 3, 61)
    expected = decode_by_hand(model, batch.tokens[1, :14])
    np.testing.assert_allclose(logs[1], expected[[8, 0, 3]], atol=3e-5)


def test_gradients_reach_every_parameter(model, batch):
    gradient = jax.jit(jax.grad(lambda p: sequence_log_probs(model.graphdef, p, batch).sum()))(
        model.params
    )
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_gradients_agree_with_a_finite_difference(model, batch):
    run = jax.jit(lambda p: sequence_log_probs(model.graphdef, p, batch).sum())
    slope = jax.jit(jax.grad(run))(model.params)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), model.params
    )
    inner = sum(
        float((a * b).sum())
        for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(direction), strict=True)
    )
    step = 1e-3

    def moved(sign):
        return float(run(jax.tree.map(lambda p, d: p + sign * step * d, model.params, direction)))

    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(inner, rel=2e-2)
