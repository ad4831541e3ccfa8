"""Cluster-robust errors against loops in float64, statsmodels' formula and closed forms."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from instructjax.generalization.cells import (
    cell_influence,
    cell_means,
    cell_weights,
    generalization_gaps,
    threshold_test,
)
from instructjax.generalization.cluster_se import (
    intersect_ids,
    mean_influence,
    multiway_cluster_se,
    ratio_influence,
    t_interval,
)
from instructjax.generalization.contrasts import cell_covariance, cluster_df, contrast_se
from instructjax.generalization.paired import benjamini_hochberg, compare_paired, holm, max_t
from instructjax.generalization.quantiles import student_t_cdf, student_t_quantile


def drop_nested(ways: list[np.ndarray]) -> list[np.ndarray]:
    """Without the ways whose every cluster lies in one cluster of a coarser way."""

    def lies_in(fine, coarse):
        return all(len(set(coarse[fine == g])) == 1 for g in set(fine))

    sizes = [len(set(way)) for way in ways]
    return [
        way
        for way, size in zip(ways, sizes, strict=True)
        if not any(
            lies_in(way, other) for other, coarse in zip(ways, sizes, strict=True) if coarse < size
        )
    ]


def twin_variance(e: np.ndarray, ways: list[np.ndarray]) -> float:
    """Cameron, Gelbach and Miller's sum by loops over clusters, float64; nested ways left out."""
    ways = drop_nested(ways)
    singles, total = [], 0.0
    for size in range(1, len(ways) + 1):
        for some in combinations(ways, size):
            sums: dict[tuple, float] = {}
            for i, value in enumerate(e):
                group = tuple(int(way[i]) for way in some)
                sums[group] = sums.get(group, 0.0) + float(value)
            term = len(sums) / (len(sums) - 1) * sum(x * x for x in sums.values())
            total += (-1) ** (size + 1) * term
            if size == 1:
                singles.append(term)
    return max(total, *singles)


@pytest.fixture(scope="module")
def records() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    c, z = rng.integers(0, 6, 64), rng.integers(0, 9, 64)
    score = rng.standard_normal(6)[c] + rng.standard_normal(9)[z] + rng.standard_normal(64)
    return score, [c, z, c // 2], rng.random(64) > 0.25


@pytest.mark.parametrize("number", [1, 2, 3])
def test_several_ways_equal_loops(records, number: int) -> None:
    score, ways, mask = records
    ways = ways[:number]
    e = np.where(mask, score - score[mask].mean(), 0) / mask.sum()
    expected = twin_variance(e[mask], [way[mask] for way in ways])
    run = jax.jit(lambda s, m, w: multiway_cluster_se(mean_influence(s, m), w, m))
    se, df = run(jnp.asarray(score, jnp.float32), mask, ways)
    assert float(se) == pytest.approx(expected**0.5, rel=1e-4)
    counted = drop_nested([way[mask] for way in ways])
    free = [len(np.unique(way)) - 1 for way in counted]
    parts = [twin_variance(e[mask], [way]) for way in counted]
    spread = sum(part**2 / g for part, g in zip(parts, free, strict=True))
    assert float(df) == pytest.approx(max(expected**2 / spread, min(free)), rel=1e-3)


def test_one_way_is_that_of_a_regression_on_a_constant(records) -> None:
    import statsmodels.api as sm

    score, (c, *_), _ = records
    fit = sm.OLS(score, np.ones(len(score))).fit(
        cov_type="cluster", cov_kwds={"groups": c, "use_correction": False}
    )
    count = len(np.unique(c))
    se, _ = multiway_cluster_se(mean_influence(jnp.asarray(score)), (c,))
    assert float(se) == pytest.approx(fit.bse[0] * (count / (count - 1)) ** 0.5, rel=1e-5)


def test_every_score_its_own_cluster_is_the_usual_standard_error() -> None:
    score = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    se, _ = multiway_cluster_se(mean_influence(score), (np.arange(50),))
    assert float(se) == pytest.approx(stats.sem(score), rel=1e-5)


def test_a_negative_sum_gives_the_largest_single_way() -> None:
    # rows and columns of the residuals sum to 0, so one-way terms vanish and the sum is negative
    score = jnp.array([1.0, -1.0, -1.0, 1.0])
    se, _ = multiway_cluster_se(
        mean_influence(score), (jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1]))
    )
    assert float(se) == 0.0


def test_ids_of_intersections_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    ways = [rng.integers(0, 5, 40) for _ in range(3)]
    expected = np.unique(np.stack(ways, 1), axis=0, return_inverse=True)[1].ravel()
    np.testing.assert_array_equal(intersect_ids(ways), expected)


def test_ratio_has_the_jackknifes_influence() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(200), 1 + rng.random(200)
    ratio, e = jax.jit(ratio_influence)(a, b)
    without = (a.sum() - a) / (b.sum() - b)
    np.testing.assert_allclose(e, float(ratio) - without, atol=3e-5)
    assert float(ratio) == pytest.approx(a.sum() / b.sum(), rel=1e-6)


@pytest.mark.parametrize("df", [1.0, 7.0, 1e6])
def test_students_t_is_scipys(df: float) -> None:
    t = np.array([-4.0, -0.3, 0.0, 1.0, 6.0], np.float32)
    np.testing.assert_allclose(student_t_cdf(t, np.full_like(t, df)), stats.t.cdf(t, df), atol=5e-5)
    for p in (0.9, 0.975, 0.995):
        found = student_t_quantile(p, jnp.array(df))
        assert float(found) == pytest.approx(stats.t.ppf(p, df), rel=2e-4)


def test_interval_is_scipys() -> None:
    low, high = jax.jit(t_interval, static_argnums=3)(
        jnp.array(0.2), jnp.array(0.1), jnp.array(5.0), 0.9
    )
    np.testing.assert_allclose((low, high), stats.t.interval(0.9, 5, 0.2, 0.1), rtol=1e-4)


def test_threshold_is_a_one_sided_t_test() -> None:
    score = np.random.default_rng(5).random(12).astype(np.float32)
    se, df = multiway_cluster_se(mean_influence(score), (np.arange(12),))
    p = threshold_test(jnp.array(score.mean()), se, df, 0.4)
    expected: Any = stats.ttest_1samp(score, 0.4, alternative="greater")
    assert float(p) == pytest.approx(expected.pvalue, abs=1e-5)


def test_macro_means_are_means_of_task_means(records) -> None:
    score, (c, _, task), mask = records
    cell = np.asarray(c % 4)
    mean, count = jax.jit(lambda s: cell_means(s, cell, task, weights="macro", mask=mask))(
        score.astype(np.float32)
    )
    for k in range(4):
        rows = mask & (cell == k)
        tasks = [score[rows & (task == t)].mean() for t in np.unique(task[rows])]
        assert float(mean[k]) == pytest.approx(np.mean(tasks), abs=1e-5)
        assert count[k] == rows.sum()
    m = np.asarray(mean, np.float64)
    np.testing.assert_allclose(
        np.stack(generalization_gaps(mean)),
        [m[0] - m[1], m[0] - m[2], m[0] - m[3], m[0] - m[1] - m[2] + m[3]],
        atol=1e-6,
    )


def test_a_contrast_of_two_separate_groups_is_welchs() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal(9), 2 * rng.standard_normal(5)
    score, cell = np.concatenate([a, b]).astype(np.float32), np.repeat([0, 2], [9, 5])
    share = cell_weights(cell)
    row = jnp.array([[1.0, 0.0, -1.0, 0.0]])
    covariance = cell_covariance(cell_influence(score, share), share, (np.arange(14),))
    se, df = contrast_se(covariance, row, jnp.zeros((1, 4), bool))
    welch = np.sqrt(a.var(ddof=1) / 9 + b.var(ddof=1) / 5)
    assert float(se[0]) == pytest.approx(welch, rel=1e-5)
    assert df[0] == 4


def test_paired_difference_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.standard_normal((2, 15)).astype(np.float32)
    mask = np.arange(15) < 12
    found = jax.jit(lambda a, b: compare_paired(a, b, [np.arange(15)], mask))(a, b)
    expected = stats.ttest_rel(a[:12], b[:12])
    assert float(found.p_value) == pytest.approx(expected.pvalue, abs=1e-5)
    interval = expected.confidence_interval()
    np.testing.assert_allclose((found.low, found.high), interval, atol=1e-4)


@pytest.mark.slow
def test_adjusted_p_values_are_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(9).random(25) ** 3
    for ours, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        expected: Any = multipletests(p, method=method)[1]
        np.testing.assert_allclose(ours(p), expected, rtol=1e-5)


@pytest.mark.slow
def test_max_t_of_independent_estimates_is_sidaks() -> None:
    draws = jax.random.normal(jax.random.key(1), (40_000, 5))
    estimate = jnp.array([2.5, 0.1, 0.2, -0.1, 0.3])
    p, low, high = max_t(estimate, estimate + draws)
    assert float(p[0]) == pytest.approx(1 - (1 - 2 * stats.norm.sf(2.5)) ** 5, abs=4e-3)
    critical = stats.norm.ppf(0.5 + 0.5 * 0.95 ** (1 / 5))
    np.testing.assert_allclose(high - estimate, critical, rtol=0.03)
    np.testing.assert_allclose(estimate - low, critical, rtol=0.03)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [7, 1, 1, 1], [40, 24, 14, 9, 5, 3], [3, 1]])
def test_degrees_of_freedom_are_those_of_the_quadratic_form(sizes: list[int]) -> None:
    """Bell and McCaffrey's, by matrices: scores are independent, clusters are weighed by size."""
    p = np.array(sizes) / sum(sizes)
    apart = np.eye(len(p)) - np.outer(np.ones(len(p)), p)  # from the mean
    form = apart.T @ np.diag(p**2 / (1 - p)) @ apart @ np.diag(1 / p)
    assert np.trace(form) == pytest.approx(1)  # the variance is unbiased
    expected = np.trace(form) ** 2 / np.trace(form @ form)
    absent = np.append(p, 0)  # a cluster without scores counts nothing
    assert float(cluster_df(jnp.asarray(absent)[:, None])[0]) == pytest.approx(expected, rel=1e-5)
    assert expected <= len(p) - 1 + 1e-9
