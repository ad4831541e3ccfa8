"""Accuracy and calibration: known cases, loops over plain numbers, and totals of a stream."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.scoring.ranking.calibration import (
    brier_score,
    expected_calibration_error,
    find_bin,
    log_loss,
)
from instructjax.scoring.ranking.metrics import RankTotals
from instructjax.scoring.ranking.normalize import log_posterior, posterior


def ece_by_hand(confidence: list[float], correct: list[bool], bins: int) -> float:
    total = 0.0
    for m in range(bins):
        inside = [
            i
            for i, c in enumerate(confidence)
            if m / bins < c <= (m + 1) / bins or (m == 0 and c == 0)
        ]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_known_cases() -> None:
    # Sure and always right, sure and always wrong, right as often as sure.
    sure = np.ones(4)
    assert expected_calibration_error(sure, np.array([True] * 4)) == 0
    assert expected_calibration_error(sure, np.array([False] * 4)) == 1
    three_in_four = np.array([True, True, True, False])
    assert expected_calibration_error(np.full(4, 0.75), three_in_four) == pytest.approx(0)
    # Errors of opposite sign cancel within a bin and add up over bins.
    right = np.array([False, True])
    assert expected_calibration_error(np.array([0.5, 0.5]), right) == pytest.approx(0)
    assert expected_calibration_error(np.array([0.4, 0.6]), right) == pytest.approx(0.4)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_ece_is_that_of_a_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    # Powers of two, whose edges are exact numbers.
    confidence, correct = [c for c, _ in pairs], [ok for _, ok in pairs]
    found = expected_calibration_error(np.array(confidence), np.array(correct), bins=bins)
    assert found == pytest.approx(ece_by_hand(confidence, correct, bins), abs=1e-12)


def test_bins_hold_their_upper_edge() -> None:
    edges = np.arange(16) / 15
    assert find_bin(edges, 15).tolist() == [0, *range(15)]


def test_brier_and_log_loss_in_closed_form() -> None:
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    answer = np.array([2, 0])
    assert brier_score(p, answer).tolist() == pytest.approx([0.04 + 0.25 + 0.49, 0])
    padded = np.concatenate([p, np.full((2, 1), 0.9)], axis=1)
    mask = np.array([[True, True, True, False]] * 2)
    np.testing.assert_allclose(brier_score(padded, answer, mask), brier_score(p, answer))
    assert brier_score(p[1:], np.array([1])).tolist() == [2]
    np.testing.assert_allclose(log_loss(np.log(p[:1]), answer[:1]), -math.log(0.3))


def test_jit_equals_numpy() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(4), 30).astype(np.float32)
    answer = rng.integers(0, 4, 30)
    correct = p.argmax(-1) == answer
    best = p.max(-1)
    for function, args in (
        (brier_score, (p, answer)),
        (log_loss, (np.log(p), answer)),
        (expected_calibration_error, (best, correct)),
    ):
        found = jax.jit(function)(*map(jnp.asarray, args))
        np.testing.assert_allclose(found, function(*args), rtol=1e-5)


@given(st.lists(st.integers(2, 5), min_size=1, max_size=30), st.integers(0, 9))
def test_totals_are_the_means_of_the_functions(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    totals = RankTotals()
    confidence, correct, brier, losses = [], [], [], []
    for size in sizes:
        scores = rng.normal(0, 2, size)
        answer, best = int(rng.integers(size)), int(scores.argmax())
        totals.add(np.asarray(log_posterior(scores)), best=best, tie=False, answer=answer)
        totals.add(np.asarray(log_posterior(scores)), best=best, tie=True, answer=None)
        p = np.asarray(posterior(scores))
        confidence.append(float(p[best]))
        correct.append(best == answer)
        brier.append(sum((p[k] - (k == answer)) ** 2 for k in range(size)))
        losses.append(-math.log(p[answer]))
    found = totals.metrics
    assert (found.num_examples, found.num_answered) == (2 * len(sizes), len(sizes))
    assert found.num_ties == len(sizes)
    assert found.accuracy == pytest.approx(np.mean(correct))
    assert found.ece == pytest.approx(ece_by_hand(confidence, correct, 15))
    assert found.brier == pytest.approx(np.mean(brier))
    assert found.log_loss == pytest.approx(np.mean(losses))


def test_without_answers_there_are_no_numbers() -> None:
    found = RankTotals().metrics
    assert (found.num_examples, found.num_answered) == (0, 0)
    assert all(math.isnan(x) for x in (found.accuracy, found.ece, found.brier, found.log_loss))


def test_a_model_that_gave_no_number_spoils_the_mean_in_sight() -> None:
    totals = RankTotals()
    totals.add(np.array([math.nan, math.nan]), best=0, tie=False, answer=0)
    assert math.isnan(totals.metrics.ece) and math.isnan(totals.metrics.brier)


def test_a_very_unlikely_answer_has_a_finite_loss() -> None:
    totals = RankTotals()
    logs = np.asarray(log_posterior(np.array([0.0, -2000.0])))
    totals.add(logs, best=0, tie=False, answer=1)
    assert totals.metrics.log_loss == pytest.approx(2000)
