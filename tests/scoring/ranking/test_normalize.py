"""Scores of candidates: closed forms, loops over plain numbers, identities, masks, jit."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.scoring.ranking.normalize import (
    calibrate,
    divide_by_length,
    find_ties,
    log_posterior,
    order_candidates,
    posterior,
    subtract_premise,
)

NUMBER = st.floats(-600, 0)
ROW = st.lists(NUMBER, min_size=1, max_size=6)


def softmax_by_hand(values: list[float]) -> list[float]:
    top = max(values)
    parts = [math.exp(value - top) for value in values]
    return [part / math.fsum(parts) for part in parts]


@given(ROW)
def test_the_posterior_sums_to_1(row: list[float]) -> None:
    shares = posterior(np.array(row))
    assert math.fsum(shares) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(shares, softmax_by_hand(row), rtol=1e-9, atol=1e-300)
    logs = np.asarray(log_posterior(np.array(row)))
    assert np.isfinite(logs).all()  # even where the share itself underflows


@given(ROW, st.randoms())
def test_permutations_pass_through(row: list[float], random: Any) -> None:
    order = list(range(len(row)))
    random.shuffle(order)
    scores, moved = np.array(row), np.array(row)[order]
    np.testing.assert_allclose(posterior(moved), posterior(scores)[order], rtol=1e-12)
    np.testing.assert_array_equal(find_ties(moved), find_ties(scores)[order])
    if len(set(row)) == len(row):
        np.testing.assert_array_equal(order_candidates(moved), order_candidates(scores)[order])


@given(ROW)
def test_pmi_with_the_prompt_as_its_premise_is_uniform(row: list[float]) -> None:
    scores = subtract_premise(np.array(row), np.array(row))
    np.testing.assert_allclose(posterior(scores), 1 / len(row), rtol=1e-12)
    assert order_candidates(scores).tolist() == list(range(1, len(row) + 1))


@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from([0.0, 7.0, math.nan, -math.inf]))
def test_padding_has_no_influence(rows: list[list[float]], filler: float) -> None:
    width = max(map(len, rows)) + 1
    padded = np.full((len(rows), width), filler)
    mask = np.zeros(padded.shape, np.bool_)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, True
    for function, pad in ((posterior, 0), (log_posterior, -np.inf), (order_candidates, 0)):
        found = function(padded, mask)
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(found[i, : len(row)], function(np.array(row)))
            assert (found[i, len(row) :] == pad).all()
    ties = find_ties(padded, mask)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(ties[i, : len(row)], find_ties(np.array(row)))
        assert not ties[i, len(row) :].any()
    free = np.repeat(padded[:, None, :], 2, axis=1)
    free[:, 1] -= np.arange(width)
    found = calibrate(padded, free, mask)
    for i, row in enumerate(rows):
        k = len(row)
        np.testing.assert_allclose(
            found[i, :k], calibrate(np.array(row), free[i, :, :k]), rtol=1e-12, atol=1e-9
        )
        assert (found[i, k:] == -np.inf).all()


def test_jit_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(-20, 5, (5, 4)).astype(np.float32)
    scores[1, 2] = scores[1].max()
    mask = rng.random((5, 4)) < 0.7
    mask[:, 0] = True
    free = rng.normal(-20, 5, (5, 3, 4)).astype(np.float32)
    for function, args in (
        (posterior, (scores, mask)),
        (log_posterior, (scores, mask)),
        (order_candidates, (scores, mask)),
        (find_ties, (scores, mask)),
        (calibrate, (scores, free, mask)),
        (divide_by_length, (scores, mask * np.arange(4))),
        (subtract_premise, (scores, free[:, 0])),
    ):
        compiled = jax.jit(function)(*map(jnp.asarray, args))
        assert isinstance(compiled, jax.Array)
        np.testing.assert_allclose(compiled, function(*args), rtol=2e-5, atol=1e-6)
    assert posterior(scores.astype(np.float64)).dtype == np.float64


def test_ties_and_order() -> None:
    scores = np.array([-2.0, -1.0, -1.0, math.nan, -math.inf])
    # What is no number comes last, beside what has no probability; the first index wins.
    assert order_candidates(scores).tolist() == [3, 1, 2, 4, 5]
    assert find_ties(scores).tolist() == [False, True, True, False, False]
    assert find_ties(np.array([-1.0])).tolist() == [False]
    assert order_candidates(np.array([0.5, 0.5])).tolist() == [1, 2]


def test_no_candidate_with_any_probability() -> None:
    assert np.isnan(np.asarray(log_posterior(np.array([-np.inf, -np.inf])))).all()
    assert posterior(np.array([-np.inf, -3.0])).tolist() == [0, 1]


def test_lengths() -> None:
    found = divide_by_length(np.array([-6.0, -4.0, -1.0]), np.array([3, 1, 0]))
    assert found[:2].tolist() == [-2, -4]
    assert math.isnan(found[2])


def test_contextual_calibration_by_hand() -> None:
    # Zhao et al. 2021, section 5: W = diag(p_cf)^-1, b = 0, over two content-free inputs.
    log_prob = np.log([0.02, 0.06, 0.01])
    free = np.log([[0.2, 0.1, 0.1], [0.01, 0.03, 0.01]])
    p = [0.02 / 0.09, 0.06 / 0.09, 0.01 / 0.09]
    p_cf = [(0.5 + 0.2) / 2, (0.25 + 0.6) / 2, (0.25 + 0.2) / 2]
    weighted = [a / b for a, b in zip(p, p_cf, strict=True)]
    expected = [w / sum(weighted) for w in weighted]
    np.testing.assert_allclose(posterior(calibrate(log_prob, free)), expected, rtol=1e-12)


@given(ROW)
def test_calibrated_by_itself_is_uniform(row: list[float]) -> None:
    scores = calibrate(np.array(row), np.array([row, row, row]))
    np.testing.assert_allclose(posterior(scores), 1 / len(row), rtol=1e-9)
