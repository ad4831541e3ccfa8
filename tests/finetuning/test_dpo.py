"""DPO on rows that compute a prompt once, against loops of numpy and pairs that share nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import DataError, UsageError
from instructjax.finetuning.losses import dpo_loss, dpo_objective
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.pairs import make_pair_batch, pair_log_probs
from instructjax.finetuning.state import make_state
from instructjax.finetuning.step import make_train_step
from instructjax.prompts.request import Request

# (prompt, what both responses begin with, chosen, rejected) in tokens
SHAPES = [(20, 0, 5, 3), (20, 2, 4, 6), (3, 0, 4, 4), (25, 1, 1, 7)]


def make_pair(rng, prompt, common, chosen, rejected):
    head = rng.integers(0, 61, prompt + common)
    sides = []
    for size in (chosen, rejected):
        ids = np.concatenate([head, rng.integers(0, 61, size)]).astype(np.int32)
        sides.append(Request(ids=ids, spans=((prompt, len(ids)),), num_bytes=1))
    return tuple(sides)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [make_pair(rng, *shape) for shape in SHAPES]


@pytest.fixture(scope="module")
def batch(pairs):
    made = make_pair_batch([pairs[:3], pairs[3:]], length=128, max_pairs=3, tile=16)
    return jax.tree.map(jnp.asarray, made)


def test_log_probs_of_pairs_are_those_of_loops_in_numpy(random_model, decode_by_hand, pairs, batch):
    model = random_model(seed=2)
    found = np.asarray(jax.jit(lambda b: pair_log_probs(model.graphdef, model.params, b))(batch))
    for pair, own in zip(pairs, found.reshape(-1, 2), strict=False):
        for request, value in zip(pair, own, strict=True):
            logs = decode_by_hand(model, request.ids[:-1])
            (start, stop) = request.spans[0]
            expected = sum(logs[i - 1, request.ids[i]] for i in range(start, stop))
            assert abs(value - expected) < 1e-4
    np.testing.assert_array_equal(found[1, 1:], 0)


def test_the_prompt_stands_once(pairs, batch):
    used = int((batch.batch.ends > 0).sum())
    apart = sum(len(r.ids) - 1 for pair in pairs for r in pair)
    shared = sum(prompt + common for prompt, common, *_ in SHAPES)
    assert used == apart - shared


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_the_closed_form(random_model, pairs, batch):
    model = random_model(seed=2)
    reference = random_model(seed=5)
    log_probs = jax.jit(lambda b: pair_log_probs(reference.graphdef, reference.params, b))
    filled = dataclasses.replace(batch, reference=log_probs(batch))

    def loss(params):
        total, weight = dpo_loss(model.graphdef, params, filled, beta=0.3, label_smoothing=0.1)
        return total / weight

    # each response in a batch of its own: nothing is shared
    alone = [
        jax.tree.map(jnp.asarray, make_pair_batch([[pair]], length=128, max_pairs=1, tile=16))
        for pair in ((a, b) for a, b in pairs)
    ]

    others = [(each, log_probs(each)[0]) for each in alone]

    def by_hand(params):
        total = 0.0
        for each, (theirs,) in others:
            ours = pair_log_probs(model.graphdef, params, each)[0, 0]
            margin = 0.3 * ((ours[0] - ours[1]) - (theirs[0] - theirs[1]))
            total += 0.9 * jnp.log1p(jnp.exp(-margin)) + 0.1 * jnp.log1p(jnp.exp(margin))
        return total / len(alone)

    found, expected = (jax.jit(jax.value_and_grad(f))(model.params) for f in (loss, by_hand))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, float(jnp.abs(b).max())))


def test_the_objective_at_known_points():
    even = dpo_objective(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    np.testing.assert_allclose(even, np.log(2), rtol=1e-6)
    far = dpo_objective(jnp.array([[0.0, -1e5]]), jnp.zeros((1, 2)), beta=1.0)
    assert float(far[0]) == 0
    worst = dpo_objective(jnp.array([[-1e3, 0.0]]), jnp.zeros((1, 2)), beta=1.0)
    np.testing.assert_allclose(worst, 1e3, rtol=1e-6)  # no overflow


@pytest.mark.slow
def test_training_prefers_the_chosen_responses(random_model, batch):
    model = random_model(seed=2)
    log_probs = jax.jit(lambda p: pair_log_probs(model.graphdef, p, batch))
    start = log_probs(model.params)
    filled = dataclasses.replace(batch, reference=start)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3), 12)
    state = make_state(model.params, optimizer)
    step = make_train_step(model.graphdef, optimizer, loss=dpo_loss)
    losses = []
    for _ in range(12):
        state, metrics = step(state, filled)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert losses[-1] < 0.3 < losses[0]
    end = log_probs(state.params)
    gain = np.asarray((end - start)[..., 0] - (end - start)[..., 1])
    assert (gain[np.asarray(batch.weights) > 0] > 0.5).all()


def test_errors_name_the_row(pairs):
    chosen, _ = pairs[0]
    with pytest.raises(DataError, match="row 1: the chosen response is the rejected one"):
        make_pair_batch([[(chosen, chosen)]], length=128, max_pairs=1)
    with pytest.raises(UsageError, match="row 1: row 1 needs more than 16 places"):
        make_pair_batch([pairs[:1]], length=16, max_pairs=1)
