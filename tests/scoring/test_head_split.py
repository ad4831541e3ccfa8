"""The head with its table's rows on several devices, against the whole table on one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batching.batch import batch_from_lengths
from instructjax.models.spmd import over_rows
from instructjax.scoring import log_prob_head
from instructjax.scoring.log_probs import token_log_probs, token_scores, weighted_sum_log_probs
from instructjax.sharding import make_mesh


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(vocab_size=64, logit_softcap=9.0)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 64, (4, 11)), jnp.int32)
    return batch_from_lengths(tokens, jnp.array([1, 3, 5, 9]), jnp.array([11, 8, 6, 11]))


MESHES = (
    pytest.param("tensor=2", marks=pytest.mark.slow),
    pytest.param("data=2,tensor=2", marks=pytest.mark.slow),
    "fsdp=4,tensor=2",
)


def mesh_of(shape):
    count = int(np.prod([int(part.split("=")[1]) for part in shape.split(",")]))
    return make_mesh(shape, jax.devices()[:count])


@pytest.mark.parametrize("shape", MESHES)
def test_scores_of_a_split_table(model, batch, shape):
    score = partial(token_scores, top_k=3)
    whole = score(model.graphdef, model.params, batch)
    split = jax.jit(over_rows(score, model.graphdef, mesh=mesh_of(shape)))(model.params, batch)
    for name in ("log_prob", "entropy", "top_log_probs"):
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), atol=1e-5)
    for name in ("greedy", "rank", "top_ids"):
        np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))


def weigh_each(graphdef, params, both):
    batch, weights = both
    return (token_log_probs(graphdef, params, batch) * weights).sum(keepdims=True)


def weigh_at_once(graphdef, params, both):
    return weighted_sum_log_probs(graphdef, params, *both).reshape(1, 1)


@pytest.mark.parametrize("weigh", [weigh_each, weigh_at_once])
@pytest.mark.parametrize("shape", MESHES)
def test_gradients_of_a_split_table(model, batch, shape, weigh, monkeypatch):
    # several chunks of positions and tiles of columns, the last of each not whole
    monkeypatch.setattr(log_prob_head, "ROWS", 5)
    monkeypatch.setattr(log_prob_head, "COLUMNS", 12)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(batch.sources.shape))

    rest = (batch, weights.astype(jnp.float32))
    over = over_rows(weigh, model.graphdef, mesh=mesh_of(shape))
    value, grads = jax.jit(jax.value_and_grad(lambda p: over(p, rest).sum()))(model.params)
    wanted = jax.value_and_grad(lambda p: weigh_each(model.graphdef, p, rest).sum())(model.params)
    np.testing.assert_allclose(value, wanted[0], rtol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(float(abs(other).max()), 1.0))
