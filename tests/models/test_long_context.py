"""Law 2 where a request's own length decides its rotary frequencies: dynamic RoPE and LongRoPE."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batching.packing import pack
from instructjax.models.config import RopeConfig
from instructjax.models.rotary import (
    frequencies_by_length,
    inverse_frequencies,
    length_classes,
    sequence_lengths,
)
from instructjax.prompts.request import Request
from instructjax.scoring.engine import Work, score_requests
from instructjax.scoring.log_probs import token_log_probs

ROPES = {
    "longrope": RopeConfig(
        kind="longrope",
        original_max_positions=48,
        divisors=(1.0, 1.5),
        long_divisors=(2.0, 8.0),
        attention_factor=1.2,
    ),
    "dynamic": RopeConfig(kind="dynamic", original_max_positions=48, factor=4.0),
}
PROMPT = np.random.default_rng(0).integers(0, 61, 40)


def request(size, seed):
    """The prompt of 40 tokens and `size` of its own, of which the last needs no position."""
    own = np.random.default_rng(seed).integers(0, 61, size)
    ids = np.concatenate([PROMPT, own]).astype(np.int32)
    return Request(ids=ids, spans=((len(PROMPT), len(ids)),), num_bytes=1)


@pytest.fixture(
    params=["longrope", pytest.param("dynamic", marks=pytest.mark.slow)], scope="module"
)
def model(request, random_model):
    return random_model(rope=ROPES[request.param])


# 48 and 49 tokens to compute stand on the two sides of the limit.
REQUESTS = [request(size, seed) for seed, size in enumerate((9, 10, 5, 30, 30, 4))]


def test_law_2_a_number_depends_on_the_requests_own_length_alone(model):
    together = list(score_requests(model, REQUESTS))
    for single, result in zip(REQUESTS, together, strict=True):
        (alone,) = score_requests(model, [single])
        assert np.array_equal(alone.token_log_probs, result.token_log_probs)
    backwards = list(score_requests(model, REQUESTS[::-1]))[::-1]
    for one, other in zip(together, backwards, strict=True):
        assert np.array_equal(one.token_log_probs, other.token_log_probs)


def test_a_prefix_shared_across_the_limit_would_change_the_number(model):
    """The test above can fail: rows that mix the sides say something else of the shorter one."""
    short, long = REQUESTS[2], REQUESTS[3]
    (right,) = score_requests(model, [short])
    (row,) = pack([short, long])
    logs = np.asarray(token_log_probs(model.graphdef, model.params, row.batch))[0]
    entries = next(entries for index, entries in row.members if index == 0)
    assert np.abs(logs[entries] - right.token_log_probs).max() > 1e-3


@pytest.mark.slow
def test_prefixes_are_still_shared_on_each_side(random_model):
    model, work = random_model(rope=ROPES["longrope"]), Work()
    list(score_requests(model, REQUESTS, work=work))
    sizes = [len(r.ids) - 1 for r in REQUESTS]
    # three on each side: twice two prefixes saved, where one tree of all would save five
    assert 4 * 40 <= sum(sizes) - work.useful < 5 * 40


def test_classes_of_lengths(random_model):
    longrope = length_classes(random_model(rope=ROPES["longrope"]).config)
    dynamic = length_classes(random_model(rope=ROPES["dynamic"]).config)
    assert longrope is not None and dynamic is not None
    assert longrope(1) == longrope(48) != longrope(49) == longrope(900)
    assert dynamic(1) == dynamic(48) != dynamic(49) != dynamic(50)
    assert length_classes(random_model().config) is None


def test_lengths_of_packed_trees_with_padding_between():
    # two branches of one prefix, padding, a sequence of its own, padding
    positions = jnp.array([[0, 1, 2, 3, 2, 0, 0, 1, 0]])
    ends = jnp.array([[5, 5, 4, 4, 5, 0, 8, 8, 0]])
    assert sequence_lengths(positions, ends).tolist() == [4, 4, 4, 4, 4, 0, 2, 2, 0]


def test_frequencies_of_each_length():
    lengths = jnp.array([0, 48, 49, 192])
    long, dynamic = ROPES["longrope"], ROPES["dynamic"]
    found = np.asarray(frequencies_by_length(long, 4, lengths))
    base = np.array([1.0, 0.01])
    np.testing.assert_allclose(found[:2], [base / [1, 1.5]] * 2, rtol=1e-6)
    np.testing.assert_allclose(found[2:], [base / [2, 8]] * 2, rtol=1e-6)
    found = np.asarray(frequencies_by_length(dynamic, 4, lengths))
    assert np.array_equal(found[:2], [inverse_frequencies(RopeConfig(), 4)] * 2)
    # theta (s L / M - s + 1)^(d / (d - 2)), by hand: 13 squared at four times the context
    np.testing.assert_allclose(found[3], [1.0, (10_000 * 13.0**2) ** -0.5], rtol=1e-6)
