"""Sensitivity to wording, POSIX, Rasch and scaling curves against loops and closed forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from instructjax.errors import UsageError
from instructjax.generalization import (
    consistency_rate,
    fit_log_linear,
    fit_power_law,
    multi_prompt_summary,
    performance_drop_rate,
    posix,
    rasch_complete,
    rasch_fit,
    scaling_curve,
    spread_noise,
)


def test_summary_by_hand() -> None:
    """Accuracies 0.6, 0.2, 0.4: Sat = 1 - (0.6 - 0.4) = 0.8, CPS = 0.8 x 0.6 = 0.48."""
    with jax.enable_x64(True):
        found = multi_prompt_summary(np.array([0.6, 0.2, 0.4]))
        assert abs(float(found.sat) - 0.8) <= 1e-12
        assert abs(float(found.cps) - 0.48) <= 1e-12
    assert float(found.max_p) == 0.6
    assert float(found.min_p) == 0.2


# Mizrahi et al. (2024), github.com/SLAB-NLP/Multi-Prompt-LLM-Evaluation at 04f57ef4
# (CDLA-Permissive-2.0): how many correct paraphrases of a task's instruction have an accuracy of so
# many percent, and the published MaxP, AvgP and CPS.
PUBLISHED = {
    ("rhyming word", "minotaur-15b"): (
        {0: 139, 1: 42, 2: 19, 3: 10, 4: 3, 5: 2, 6: 3, 7: 1},
        (0.07, 0.007168949771689503, 0.06560182648401827),
    ),
    ("rhyming word", "ultralm-13b"): (
        {0: 137, 1: 29, 2: 15, 3: 11, 4: 5, 5: 3, 6: 2, 7: 1}
        | {8: 2, 9: 3, 10: 2, 11: 3, 12: 1, 14: 3, 15: 1, 16: 1},
        (0.16, 0.01493150684931505, 0.1367890410958904),
    ),
    ("homophones", "minotaur-15b"): (
        {0: 163, 1: 29, 2: 11, 3: 5, 4: 8, 5: 4, 6: 2, 7: 2}
        | {8: 2, 9: 1, 11: 1, 12: 1, 13: 2, 14: 1, 15: 2, 16: 1},
        (0.16, 0.011829787234042542, 0.13629276595744683),
    ),
}


def test_summaries_are_the_published_ones() -> None:
    for counts, expected in PUBLISHED.values():
        accuracy = np.repeat([k / 100 for k in counts], list(counts.values()))
        with jax.enable_x64(True):
            found = jax.jit(multi_prompt_summary)(accuracy)
        np.testing.assert_allclose(
            [found.max_p, found.avg_p, found.cps], expected, rtol=0, atol=1e-12
        )


def test_a_summary_of_no_instruction_is_refused() -> None:
    accuracy, mask = jnp.ones((2, 3)), jnp.array([[True, False, True], [False] * 3])
    with pytest.raises(UsageError, match="no instruction counts"):
        multi_prompt_summary(accuracy, mask)
    traced = jax.jit(multi_prompt_summary)(accuracy, mask)
    assert [float(x[0]) for x in traced] == [1, 1, 1, 1, 0, 0, 1, 1]
    assert all(np.isnan(x[1]) for x in traced)


def test_summary_with_a_mask_is_that_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    accuracy, mask = rng.random((3, 11)).astype(np.float32), rng.random((3, 11)) > 0.4
    found = jax.jit(multi_prompt_summary)(accuracy, mask)
    for row in range(3):
        a = accuracy[row][mask[row]].astype(np.float64)
        q1, q2, q3 = np.quantile(a, [0.25, 0.5, 0.75])
        sat = 1 - (a.max() - a.mean())
        expected = (a.max(), a.min(), a.mean(), q2, q3 - q1, np.ptp(a), sat, sat * a.max())
        np.testing.assert_allclose([float(x[row]) for x in found], expected, atol=1e-6)


@pytest.mark.slow
def test_spread_of_noise_is_what_is_expected_of_equal_instructions() -> None:
    """Permuted means of Z scores have sd s / sqrt(Z): the range of 2 is 2 / sqrt(pi) of that."""
    rng = np.random.default_rng(1)
    score = rng.standard_normal((2, 400)).astype(np.float32)
    found = spread_noise(jax.random.key(0), score, permutations=800)
    apart = score[0] - score[1]  # a permutation flips signs: |mean| of a normal variable
    expected = np.sqrt((apart**2).mean() / 400) * np.sqrt(2 / np.pi)
    assert float(found.expected) == pytest.approx(expected, rel=0.08)
    assert 0.01 < float(found.p_value) <= 1


@pytest.mark.slow
def test_p_value_of_spread_is_uniform_where_wording_does_not_matter() -> None:
    """With inputs of very different difficulty and holes, which the permutation must respect."""

    def one(key):
        a, b, c, d = jax.random.split(key, 4)
        score = 3 * jax.random.normal(a, (1, 20)) + jax.random.normal(b, (5, 20))
        there = jax.random.uniform(c, (5, 20)) > 0.3
        return spread_noise(d, score, there, permutations=99).p_value

    p = np.asarray(
        jax.jit(lambda k: jax.lax.map(one, k, batch_size=40))(
            jax.random.split(jax.random.key(2), 400)
        )
    )
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_drop_rate_by_hand() -> None:
    clean, hurt = np.array([0.8, 0.4], np.float32), np.array([0.4, 0.2], np.float32)
    assert float(performance_drop_rate(clean, hurt)) == pytest.approx(0.5)
    assert float(performance_drop_rate(hurt, clean)) == pytest.approx(-1.0)


def test_a_drop_of_negative_scores_is_refused() -> None:
    """1 - (-3 / -2) would call a loss a gain."""
    for clean, hurt in (([-1.0, -1.0], [-2.0, -1.0]), ([1.0], [-1.0])):
        with pytest.raises(UsageError, match="negative"):
            performance_drop_rate(jnp.array(clean), jnp.array(hurt))
        assert np.isnan(jax.jit(performance_drop_rate)(jnp.array(clean), jnp.array(hurt)))
    assert float(performance_drop_rate(jnp.zeros(2), jnp.ones(2))) == 0


@pytest.mark.parametrize(("fit", "least"), [(fit_log_linear, 2), (fit_power_law, 3)])
def test_curves_need_different_numbers(fit: Any, least: int) -> None:
    few = jnp.arange(1.0, least)  # one too few
    n = jnp.concatenate([few, few])
    for numbers, weight in ((n, None), (jnp.append(n, 9.0), jnp.append(jnp.ones(len(n)), 0))):
        score = jnp.arange(float(len(numbers)))
        with pytest.raises(UsageError, match=f"fewer than {least} different numbers"):
            fit(numbers, score, weight)
        assert np.isnan(jax.jit(fit)(numbers, score, weight).parameters).all()
    with pytest.raises(UsageError, match="not above 0"):
        fit(jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.ones(4))


def test_a_line_through_two_points_has_no_error_to_tell() -> None:
    fit = fit_log_linear(jnp.array([1.0, np.e]), jnp.array([0.2, 0.5]))
    np.testing.assert_allclose(fit.parameters, [0.2, 0.3], atol=1e-5)
    assert np.isinf(fit.high).all()
    assert np.isinf(fit.low).all()


def test_consistency_is_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(3)
    answers, there = rng.integers(0, 3, (5, 7)), rng.random((5, 7)) > 0.3
    mean, each = consistency_rate(answers, there)
    expected = []
    for z in range(7):
        a = answers[there[:, z], z]
        pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
        expected.append(np.mean([a[i] == a[j] for i, j in pairs]) if pairs else 0)
    np.testing.assert_allclose(each, expected, atol=1e-6)
    counted = [e for z, e in enumerate(expected) if there[:, z].sum() > 1]
    assert float(mean) == pytest.approx(np.mean(counted), abs=1e-6)


def test_posix_is_its_formula() -> None:
    rng = np.random.default_rng(4)
    log_prob = -10 * rng.random((3, 4, 4))
    length = rng.integers(1, 9, (3, 4))
    mask = np.arange(4) < np.array([[4], [3], [1]])
    value, psi = jax.jit(posix)(log_prob.astype(np.float32), length, mask)
    expected = []
    for p, n in enumerate((4, 3)):
        total = sum(
            abs(log_prob[p, i, j] - log_prob[p, j, j]) / length[p, j]
            for i in range(n)
            for j in range(n)
        )
        expected.append(total / (n * (n - 1)))
    np.testing.assert_allclose(psi[:2], expected, rtol=1e-5)
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)
    code, _ = posix(log_prob[:1].astype(np.float32), length[:1], published_code=30)
    rows = sum(abs(log_prob[0, j, i] - log_prob[0, j, j]) / 30 for i in range(4) for j in range(4))
    assert float(code) == pytest.approx(rows / 12, rel=1e-5)


def test_rasch_is_the_maximum_that_scipy_finds() -> None:
    rng = np.random.default_rng(5)
    score, there = rng.integers(0, 2, (4, 6)).astype(np.float64), rng.random((4, 6)) > 0.2
    mean = (score[there].sum() + 0.5) / (there.sum() + 1)
    base = np.log(mean / (1 - mean))

    def loss(x):
        logit = base + x[:4, None] - x[4:]
        log_p = np.where(score > 0, -np.logaddexp(0, -logit), -np.logaddexp(0, logit))
        return -log_p[there].sum() + (x**2).sum() / 18

    best = optimize.minimize(loss, np.zeros(10), tol=1e-10).x
    fit = jax.jit(rasch_fit)(score.astype(np.float32), there)
    logits = np.asarray(fit.ability)[:, None] - np.asarray(fit.difficulty)
    np.testing.assert_allclose(logits, base + best[:4, None] - best[4:], atol=2e-3)
    assert float(fit.difficulty.mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_rasch_completes_a_sparse_grid() -> None:
    """With a fifth of the cells, instructions' means are nearer than those of the cells alone."""
    errors = np.zeros(2)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        logits = 0.5 * rng.standard_normal((60, 1)) - 2 * rng.standard_normal(100)
        score = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        there = rng.random(logits.shape) < 0.2
        completed = np.asarray(rasch_complete(score, there)).mean(1)
        alone = np.where(there, score, 0).sum(1) / there.sum(1)
        whole = score.mean(1)
        errors += np.abs(completed - whole).mean(), np.abs(alone - whole).mean()
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.slow
def test_log_linear_fit_is_scipys_regression() -> None:
    rng = np.random.default_rng(7)
    n = np.array([1, 2, 4, 8, 16, 32], np.float32)
    y = (0.2 + 0.1 * np.log(n) + 0.02 * rng.standard_normal(6)).astype(np.float32)
    expected: Any = stats.linregress(np.log(n), y)
    fit = jax.jit(fit_log_linear)(n, y)
    np.testing.assert_allclose(fit.parameters, (expected.intercept, expected.slope), rtol=1e-4)
    np.testing.assert_allclose(fit.se, (expected.intercept_stderr, expected.stderr), rtol=1e-3)
    half = stats.t.ppf(0.975, 4) * expected.stderr
    assert float(fit.high[1] - fit.parameters[1]) == pytest.approx(half, rel=1e-3)
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)  # a missing point
    without, fewer = fit_log_linear(n, y, weight), fit_log_linear(n[:5], y[:5])
    np.testing.assert_allclose(without.low, fewer.low, rtol=1e-3)


@pytest.mark.slow
def test_power_law_fit_is_scipys() -> None:
    rng = np.random.default_rng(8)
    n = 2.0 ** np.arange(9)
    y = 0.8 - 0.6 * n**-0.5 + 0.01 * rng.standard_normal(9)
    best, covariance = optimize.curve_fit(
        lambda n, s, a, k: s - a * n**-k, n, y, p0=(0.7, 0.5, 0.4), xtol=1e-12, ftol=1e-12
    )
    with jax.enable_x64(True):
        fit = jax.jit(fit_power_law)(n, y)
    np.testing.assert_allclose(fit.parameters, best, rtol=1e-3)
    np.testing.assert_allclose(fit.se, np.sqrt(np.diag(covariance)), rtol=1e-2)


def best_curve(n: np.ndarray, y: np.ndarray, alpha: float) -> tuple[np.ndarray, float, np.ndarray]:
    """s_inf and A of one alpha by least squares, what they leave, and their variances over it."""
    x = np.stack([np.ones(len(n)), -(n**-alpha)], axis=1)
    line = np.linalg.lstsq(x, y, rcond=None)[0]
    return line, float(((y - x @ line) ** 2).sum()), np.diag(np.linalg.inv(x.T @ x))


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_power_law_in_float32_is_that_of_float64(alpha: float) -> None:
    """Standard errors from the inverse, and intervals from the profile, both dense, in numpy."""
    n = 2.0 ** np.arange(9)
    y = 0.8 - 0.6 * n**-alpha + 0.004 * np.random.default_rng(2).standard_normal(9)
    fit = jax.jit(fit_power_law)(n.astype(np.float32), y.astype(np.float32))
    alphas = np.exp(np.linspace(np.log(0.02), np.log(5), 40_001))
    lines, squares, variances = map(
        np.array, zip(*(best_curve(n, y, a) for a in alphas), strict=True)
    )
    place = squares.argmin()
    (floor, size), best, variance = lines[place], alphas[place], squares[place] / 6
    power = n**-best
    jacobian = np.stack([np.ones(9), -power, size * np.log(n) * power], axis=1)
    se = np.sqrt(variance * np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    np.testing.assert_allclose(fit.parameters, (floor, size, best), rtol=3e-3)
    np.testing.assert_allclose(fit.se, se, rtol=1e-2)
    limit = squares[place] + variance * stats.t.ppf(0.975, 6) ** 2
    room = np.sqrt(np.maximum(limit - squares, 0)[:, None] * variances)
    inside = squares <= limit
    assert not inside[[0, -1]].any()
    low, high = (lines - room)[inside].min(0), (lines + room)[inside].max(0)
    np.testing.assert_allclose(fit.low, (*low, alphas[inside][0]), rtol=5e-3)
    np.testing.assert_allclose(fit.high, (*high, alphas[inside][-1]), rtol=5e-3)


@pytest.mark.parametrize("score", [np.zeros(8), np.full(8, 0.3), 0.3 + np.log(2.0 ** np.arange(8))])
def test_a_curve_without_a_bend_has_no_error_to_tell(score: np.ndarray) -> None:
    """Its floor may be anywhere: log n is the power law's limit at alpha 0."""
    fit = jax.jit(fit_power_law)(2.0 ** np.arange(8), score)
    assert np.isinf(fit.se).all()
    assert np.isinf(fit.high[:2]).all()
    assert float(fit.low[2]) == -np.inf


@pytest.mark.slow
def test_intervals_of_a_curve_hardly_bent_hold_the_truth() -> None:
    n, rng, runs = 2.0 ** np.arange(8), np.random.default_rng(3), 300
    run = jax.jit(fit_power_law)
    held = np.zeros(3)
    for _ in range(runs):
        fit = run(n, 0.8 - 0.6 * n**-0.1 + 0.01 * rng.standard_normal(8))
        held += (np.array([0.8, 0.6, 0.1]) >= fit.low) & (np.array([0.8, 0.6, 0.1]) <= fit.high)
    assert (held / runs > 0.92).all()


@pytest.mark.parametrize(
    ("shape", "numbers", "subsets", "says"),
    [
        ((4, 6), [1, 5], 9, "not from 1 to 4"),
        ((4, 6), [0], 9, "not from 1 to 4"),
        ((4, 1), [1], 9, "1 inputs are too few"),
        ((4, 6), [1], 0, "0 subsets are too few"),
    ],
)
def test_curves_of_numbers_that_cannot_be(shape, numbers, subsets, says) -> None:
    with pytest.raises(UsageError, match=says):
        scaling_curve(jax.random.key(0), jnp.ones(shape), jnp.array(numbers), subsets=subsets)


def test_under_jit_a_number_beyond_the_instructions_has_no_value() -> None:
    run = jax.jit(lambda numbers: scaling_curve(jax.random.key(0), jnp.ones((4, 6)), numbers))
    mean, spread = run(jnp.array([1, 4, 5]))
    np.testing.assert_array_equal(mean, [1, 1, np.nan])
    np.testing.assert_array_equal(spread, [0, 0, np.nan])


@pytest.mark.slow
def test_the_best_of_more_instructions_is_better_but_luck_is_not_counted() -> None:
    rng = np.random.default_rng(9)
    same = rng.standard_normal((10, 60)).astype(np.float32)
    mean, _ = scaling_curve(jax.random.key(0), same, jnp.array([1, 10]))
    assert abs(float(mean[1] - mean[0])) < 0.15
    apart = same + np.linspace(-1, 1, 10, dtype=np.float32)[:, None]
    mean, _ = scaling_curve(jax.random.key(0), apart, jnp.array([1, 3, 10]))
    assert float(mean[0]) < float(mean[1]) < float(mean[2])
    assert float(mean[2]) == pytest.approx(apart[8:].mean(), abs=0.25)
