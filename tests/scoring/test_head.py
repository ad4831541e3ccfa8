"""The head against dense logits in float64: values, ties, gradients, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from instructjax.scoring import head
from instructjax.scoring.head import score_positions


@pytest.fixture(params=["whole", "tiled"])
def tiling(request, monkeypatch):
    """Both the case in which everything fits one tile and one with many, the last ones ragged."""
    if request.param == "tiled":
        monkeypatch.setattr(head, "ROWS", 4)
        monkeypatch.setattr(head, "COLUMNS", 8)


def problem(seed=0, tokens=13, vocab=29, width=6, scored=11):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((tokens, width)).astype(np.float32)
    table = (2 * rng.standard_normal((vocab, width))).astype(np.float32)
    sources = rng.integers(0, tokens, scored)  # some hidden states predict twice
    targets = rng.integers(0, vocab, scored)
    return tuple(map(jnp.asarray, (hidden, table, sources, targets)))


def dense(hidden, table):
    logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.mark.parametrize("count", [0, 1, 4, 7, 11])
def test_scores_are_those_of_dense_logits(tiling, count):
    hidden, table, sources, targets = problem()
    scores = score_positions(hidden, table, sources, targets, jnp.array(count), top_k=5)
    logs = dense(hidden, table)[sources]
    own = logs[np.arange(11), targets]
    order = np.argsort(-logs, axis=-1)[:, :5]
    expected = {
        "log_prob": own,
        "entropy": -(np.exp(logs) * logs).sum(-1),
        "rank": (logs > own[:, None]).sum(-1) + 1,
        "greedy": logs.argmax(-1) == targets,
        "top_ids": order,
        "top_log_probs": np.take_along_axis(logs, order, -1),
    }
    assert set(expected) == set(scores.__dataclass_fields__)
    for name, values in expected.items():
        ours = np.asarray(getattr(scores, name))
        np.testing.assert_allclose(ours[:count], values[:count], atol=1e-5, err_msg=name)
        assert not ours[count:].any(), name


def test_every_token_of_a_vocabulary_wider_than_a_tile_is_scored_once():
    rng = np.random.default_rng(3)
    vocab = 2 * head.COLUMNS + 77
    hidden = jnp.asarray(rng.standard_normal((1, 4)), jnp.float32)
    table = jnp.asarray(3 * rng.standard_normal((vocab, 4)), jnp.float32)
    edge = head.COLUMNS
    targets = jnp.array([0, edge - 1, edge, vocab - edge, 2 * edge, vocab - 1])
    scores = score_positions(
        hidden, table, jnp.zeros_like(targets), targets, jnp.array(len(targets)), top_k=3
    )
    logs = dense(hidden, table)[0]
    np.testing.assert_allclose(scores.log_prob, logs[targets], atol=2e-5)
    np.testing.assert_array_equal(scores.rank, [(logs > logs[t]).sum() + 1 for t in targets])
    np.testing.assert_array_equal(scores.top_ids[0], np.argsort(-logs)[:3])


def test_pitfall_13_of_equal_logits_the_lowest_id_is_greedy(tiling):
    # Whole numbers: equal logits are equal to the last bit. Ids 3 and 20 tie at the top (in
    # different tiles), 5 and 27 below them.
    table = jnp.zeros((29, 2)).at[jnp.array([3, 20, 5, 27]), 0].set(jnp.array([4.0, 4, 2, 2]))
    targets = jnp.array([3, 20, 5, 27, 0])
    scores = score_positions(
        jnp.array([[1.0, 0.0]]), table, jnp.zeros_like(targets), targets, jnp.array(5), top_k=6
    )
    assert scores.greedy.tolist() == [True, False, False, False, False]
    assert scores.rank.tolist() == [1, 2, 3, 3, 5]
    assert scores.top_ids[0].tolist() == [3, 20, 5, 27, 0, 1]


def weights_of(scored):
    return jnp.asarray(np.random.default_rng(9).standard_normal(scored), jnp.float32)


@pytest.mark.parametrize("count", [0, 3, 11])
def test_gradients_are_those_of_dense_logits(tiling, count):
    hidden, table, sources, targets = problem(seed=1)

    def ours(hidden, table):
        scores = score_positions(hidden, table, sources, targets, jnp.array(count))
        return (scores.log_prob * weights_of(11)).sum()

    def reference(hidden, table):
        logs = jax.nn.log_softmax(jnp.matmul(hidden, table.T, precision="highest"))
        own = logs[sources, targets] * weights_of(11)
        return jnp.where(jnp.arange(11) < count, own, 0).sum()

    found, wanted = (jax.jit(jax.grad(f, (0, 1)))(hidden, table) for f in (ours, reference))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        assert bool(jnp.abs(b).max() > 0.1) == (count > 0)


def test_gradients_agree_with_finite_differences(tiling):
    hidden, table, sources, targets = problem(seed=2)

    @jax.jit
    def log_prob(hidden, table):
        return score_positions(hidden, table, sources, targets, jnp.array(9)).log_prob.sum()

    check_grads(log_prob, (hidden, table), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradients_stay_finite_whatever_the_size_of_the_logits(tiling, scale):
    hidden, table, sources, targets = problem(seed=4)
    table = scale * table  # logits in the thousands: exp of them is infinite in float32

    def log_prob(hidden, table):
        return score_positions(hidden, table, sources, targets, jnp.array(7)).log_prob.sum()

    for gradient in jax.jit(jax.grad(log_prob, (0, 1)))(hidden, table):
        assert np.isfinite(gradient).all()


def test_hidden_states_that_score_nothing_are_never_read(tiling):
    hidden, table, _, targets = problem()
    sources = jnp.array([0, 2, 2, 5, 7, 7, 0, 0, 0, 0, 0])
    poisoned = hidden.at[jnp.array([1, 3, 4, 6, 8, 9, 10, 11, 12])].set(jnp.nan)

    def log_prob(hidden, table):
        return score_positions(hidden, table, sources, targets, jnp.array(6)).log_prob

    np.testing.assert_array_equal(log_prob(poisoned, table), log_prob(hidden, table))
    gradient = jax.jit(jax.grad(lambda *args: log_prob(*args).sum(), (0, 1)))
    for clean, ours in zip(gradient(hidden, table), gradient(poisoned, table), strict=True):
        np.testing.assert_array_equal(clean, ours)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_law_10_work_follows_the_number_of_scored_tokens(monkeypatch, count):
    monkeypatch.setattr(head, "ROWS", 4)
    monkeypatch.setattr(head, "COLUMNS", 8)
    shapes, calls = set(), []
    plain = head.compute_logits

    def counted(chunk, weights):
        shapes.add((chunk.shape[0], weights.shape[0]))
        jax.debug.callback(lambda: calls.append(None))
        return plain(chunk, weights)

    monkeypatch.setattr(head, "compute_logits", counted)
    hidden, table, sources, targets = problem()
    scores = score_positions(hidden, table, sources, targets, jnp.array(count))
    jax.block_until_ready(scores)
    jax.effects_barrier()
    assert shapes == {(4, 8)}
    assert len(calls) == -(-count // 4) * 4  # chunks of rows times the 4 tiles that hold 29 ids


def test_only_log_prob_can_be_differentiated(tiling):
    hidden, table, sources, targets = problem()
    with pytest.raises(TypeError, match="only log_prob"):
        jax.grad(lambda h: score_positions(h, table, sources, targets, jnp.array(3)).entropy.sum())(
            hidden
        )


def test_pitfall_12_bfloat16_hidden_states_get_a_float32_log_softmax(tiling):
    hidden, table, sources, targets = problem(seed=5, vocab=29, width=64)
    hidden, table = hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16)
    expected = dense(hidden, table)[sources, targets]
    scores = score_positions(hidden, table, sources, targets, jnp.array(11))
    assert scores.log_prob.dtype == jnp.float32
    np.testing.assert_allclose(scores.log_prob, expected, atol=1e-4)
    rounded = jax.nn.log_softmax(hidden @ table.T)[sources, targets].astype(jnp.float32)
    assert np.abs(rounded - expected).max() > 0.02  # what a bfloat16 log-softmax would say
