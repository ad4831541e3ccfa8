"""Functions of arrays under `jax.jit` are what a few lines of numpy, float64, say they are.

Those that are not here have a twin of numpy, scipy or statsmodels under `jax.jit` in the file of
their theme.
"""

from __future__ import annotations

from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from instructjax import generalization as g
from instructjax.errors import UsageError
from instructjax.generalization import bootstrap

RNG = np.random.default_rng(0)
GRID = RNG.random((4, 6))
THERE = RNG.random((4, 6)) > 0.25
C, Z = (x.ravel() for x in np.indices(GRID.shape))
CELL = 2 * (C >= 2) + (Z >= 3)
TASK = C % 2
P = np.array([0.01, 0.04, 0.03, 0.2, 0.011])


def agree(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    """Same leaves, in order."""
    found = jax.tree.leaves(found)
    expected = [np.asarray(x, np.float64) for x in expected]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("weights", ["micro", "macro"])
def test_cells(weights: Any) -> None:
    score, mask = GRID.ravel().astype(np.float32), THERE.ravel()
    share = jax.jit(partial(g.cell_weights, weights=weights))(CELL, TASK, mask=mask)
    expected = np.zeros((24, 4))
    for k in range(4):
        rows = mask & (k == CELL)
        tasks = set(TASK[rows])
        for i in np.flatnonzero(rows):
            same = rows & (TASK[i] == TASK)
            expected[i, k] = 1 / rows.sum() if weights == "micro" else 1 / same.sum() / len(tasks)
    agree([share], [expected])
    means = [(expected[:, k] * score).sum() for k in range(4)]
    found = jax.jit(partial(g.cell_means, weights=weights))(score, CELL, TASK, mask=mask)
    agree(found, [means, [(mask & (k == CELL)).sum() for k in range(4)]])
    influence = [[expected[i, k] * (score[i] - means[k]) for k in range(4)] for i in range(24)]
    agree([jax.jit(g.cell_influence)(score, share)], [influence])


@pytest.mark.parametrize(("better", "sign"), [("higher", 1), ("lower", -1)])
def test_gaps_and_thresholds(better: Any, sign: int) -> None:
    m = np.array([0.9, 0.7, 0.6, 0.2])
    gaps = [m[0] - m[1], m[0] - m[2], m[0] - m[3], m[0] - m[1] - m[2] + m[3]]
    run = jax.jit(partial(g.generalization_gaps, better=better))
    agree(run(m.astype(np.float32)), sign * np.array(gaps))
    se, df = np.full(4, 0.1), np.array([3.0, 7, 20, 100])
    test = jax.jit(partial(g.threshold_test, epsilon=0.5, better=better))
    found = test(*(x.astype(np.float32) for x in (m, se, df)))
    agree([found], [stats.t.sf(sign * (m - 0.5) / se, df)], rtol=2e-3)


def test_a_threshold_is_a_number() -> None:
    one = jnp.array(1.0)
    for epsilon in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="threshold"):
            g.threshold_test(one, one, one, epsilon)


def test_adjusted_p_values_by_their_definitions() -> None:
    k = len(P)
    order = np.argsort(P)
    holm, fdr = np.empty(k), np.empty(k)
    for rank, i in enumerate(order):
        holm[i] = min(1, max((k - r) * P[order[r]] for r in range(rank + 1)))
        fdr[i] = min(1, *(k / (r + 1) * P[order[r]] for r in range(rank, k)))
    agree([jax.jit(g.holm)(P.astype(np.float32))], [holm])
    agree([jax.jit(g.benjamini_hochberg)(P.astype(np.float32))], [fdr])


@pytest.mark.parametrize(("adjust", "method"), [(g.holm, "holm"), (g.benjamini_hochberg, "fdr_bh")])
def test_p_values_that_are_not_known_do_not_count(adjust: Any, method: str) -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(5).random(9) * 0.2
    p[[0, 4, 8]] = np.nan
    known = ~np.isnan(p)
    found = np.asarray(jax.jit(adjust)(p))
    expected: Any = multipletests(p[known], method=method)[1]
    np.testing.assert_allclose(found[known], expected, rtol=1e-5)
    assert np.isnan(found[~known]).all()
    assert np.isnan(adjust(jnp.full(2, jnp.nan))).all()


def test_max_t_by_loops() -> None:
    estimate, draws = P * 50, RNG.standard_normal((200, 5)) + P * 50
    apart = np.abs(draws - estimate)
    se = np.sqrt((apart**2).mean(0))
    t, deviation = np.abs(estimate) / se, apart / se
    order = np.argsort(-t)
    p, floor = np.empty(5), 0.0
    for place, i in enumerate(order):
        largest = deviation[:, order[place:]].max(1)
        floor = max(floor, ((largest >= t[i]).sum() + 1) / 201)
        p[i] = floor
    critical = np.quantile(deviation.max(1), 0.95)
    found = jax.jit(g.max_t)(estimate.astype(np.float32), draws.astype(np.float32))
    agree(found, [p, estimate - critical * se, estimate + critical * se], rtol=1e-3)


def test_one_way_variance_by_loops() -> None:
    score, mask, way = GRID.ravel(), THERE.ravel(), RNG.integers(0, 5, 24)
    e = np.where(mask, score - score[mask].mean(), 0) / mask.sum()
    groups = sorted(set(way[mask]))
    plain = sum(e[way == group].sum() ** 2 for group in groups)
    for small, factor in ((True, len(groups) / (len(groups) - 1)), (False, 1)):
        run = jax.jit(partial(g.one_way_variance, small_sample=small))
        agree([run(e.astype(np.float32), way, mask)], [plain * factor])


def test_negative_components_are_clipped() -> None:
    agree(jax.jit(g.clip_components)(g.Components(*jnp.array([-1.0, 2, -3, 0]))), [0, 2, 0, 0])
    nested = g.NestedComponents(*jnp.array([1.0, -2, 3, -4, 5, -6]))
    agree(jax.jit(g.clip_components)(nested), [1, 0, 3, 0, 5, 0])


@pytest.mark.parametrize("clusters", [4, 12])
def test_bootstrap_t_is_student_around_the_draws_spread(clusters: int) -> None:
    draws = RNG.standard_normal((500, 2)) + 0.3
    estimate = np.array([0.2, 0.5])
    se = np.sqrt(((draws - estimate) ** 2).mean(0) * clusters / (clusters - 1))
    half = stats.t.ppf(0.95, clusters - 1) * se
    run = jax.jit(partial(g.bootstrap_t_interval, clusters=clusters, level=0.9))
    found = run(estimate.astype(np.float32), draws.astype(np.float32))
    agree(found, [estimate - half, estimate + half], rtol=1e-3)


def test_rescaled_interval_is_the_draws_quantiles_in_units_of_the_error() -> None:
    draws = RNG.exponential(size=(500, 3)) - 0.8  # skewed
    estimate, se, df = np.array([0.2, 0.1, 0.0]), np.array([0.3, 2.0, 1.0]), np.array([5.0, 40, 0])
    apart = draws - estimate
    unit = np.quantile(apart, [0.025, 0.975], axis=0) / np.sqrt((apart**2).mean(0))
    wider = stats.t.ppf(0.975, np.maximum(df, 1)) / stats.norm.ppf(0.975)
    low, high = estimate + unit * wider * se
    low[2], high[2] = -np.inf, np.inf
    arrays = (x.astype(np.float32) for x in (estimate, draws, se, df))
    agree(jax.jit(g.rescaled_interval)(*arrays), [low, high], rtol=1e-3)


@pytest.mark.parametrize("kind", ["exponential", "pigeonhole"])
@pytest.mark.parametrize("macro", [True, False])
def test_nested_draws_are_weighted_means(kind: Any, macro: bool, monkeypatch: Any) -> None:
    """With the weights that were drawn, of tasks and then of the inputs of each."""
    drawn = []
    real = bootstrap.draw_weights

    def spy(key, draws, count, kind):
        weights = real(key, draws, count, kind)
        jax.debug.callback(lambda w: drawn.append(np.asarray(w, np.float64)), weights, ordered=True)
        return weights

    monkeypatch.setattr(bootstrap, "draw_weights", spy)
    run = jax.jit(partial(g.nested_bootstrap, draws=250, kind=kind, macro=macro))
    found = np.asarray(run(jax.random.key(0), GRID.astype(np.float32), THERE))
    of_task, *of_inputs = drawn
    for i in range(0, 250, 25):
        above = below = 0.0
        for t in range(4):
            weight = of_inputs[t][i] * THERE[t]
            if weight.sum() == 0:
                continue
            mean, size = (weight * GRID[t]).sum() / weight.sum(), 1 if macro else weight.sum()
            above, below = above + of_task[i, t] * size * mean, below + of_task[i, t] * size
        assert found[i] == pytest.approx(above / below if below else 0, abs=1e-5)


def test_design_study_and_reliability_by_hand() -> None:
    parts = g.Components(*jnp.array([0.02, 0.05, 0.1, 0.03]))
    se = np.sqrt(0.02 / 4 + 0.05 / 16 + 0.1 / 64 + 0.03 / 128)
    agree([jax.jit(g.d_study)(parts, 4, 16, 2)], [se])
    found = jax.jit(g.g_coefficients)(*map(jnp.asarray, (0.03, 0.01, 0.02)))
    agree(found, [0.03 / 0.04, 0.03 / 0.05])


def test_mean_squares_give_the_error_of_a_mean() -> None:
    c, z = GRID.shape
    m = GRID.mean()
    ms_c = z * ((GRID.mean(1) - m) ** 2).sum() / (c - 1)
    ms_z = c * ((GRID.mean(0) - m) ** 2).sum() / (z - 1)
    rest = GRID - GRID.mean(1)[:, None] - GRID.mean(0) + m
    ms_cz = (rest**2).sum() / ((c - 1) * (z - 1))
    total = max(ms_c + ms_z - ms_cz, ms_c, ms_z)
    spread = ms_c**2 / (c - 1) + ms_z**2 / (z - 1) + ms_cz**2 / ((c - 1) * (z - 1))
    df = min(max(total**2 / spread, min(c, z) - 1), c * z - 1)
    agree(jax.jit(g.mean_se)(GRID.astype(np.float32)), [np.sqrt(total / (c * z)), df], rtol=1e-3)


def test_shapley_values_over_all_orders_of_tokens() -> None:
    """Of each token: what c adds, over both orders in which c and z can come."""
    scores = {"": -3 * RNG.random(5), "c": -2 * RNG.random(5), "z": -2 * RNG.random(5)}
    scores["cz"] = -RNG.random(5)
    added = {"c": [], "z": []}
    for order in permutations("cz"):
        have = ""
        for player in order:
            now = "".join(sorted(have + player))
            added[player].append(scores[now] - scores[have])
            have = now
    arrays = (scores[k].astype(np.float32) for k in ("cz", "c", "z", ""))
    found = jax.jit(g.conditional_attribution)(*arrays)
    agree(
        [found.shapley_instruction, found.shapley_input],
        [np.mean(added["c"], 0), np.mean(added["z"], 0)],
    )


def test_marginal_with_holes_is_bayes() -> None:
    log_prob = -3 * RNG.random((3, 3, 4))
    mask = RNG.random((3, 4)) > 0.3
    prior = np.array([0.5, 0.3, 0.2])
    found = jax.jit(g.marginal_attribution)(
        log_prob.astype(np.float32), np.log(prior).astype(np.float32), mask
    )
    joint = prior[:, None, None] * np.exp(log_prob)
    marginal = joint.sum(0)
    information, identified = np.zeros(4), np.zeros(4)
    for z in range(4):
        weight = np.where(mask[:, z], prior, 0)
        weight = weight / max(weight.sum(), 1e-30)
        for d in range(3):
            information[z] += weight[d] * (log_prob[d, d, z] - np.log(marginal[d, z])) * mask[d, z]
            identified[z] += weight[d] * (joint[:, d, z].argmax() == d)
    expected = [
        np.where(mask, np.log(marginal), 0),
        np.where(mask, log_prob - np.log(marginal), 0),
        np.where(mask, np.log(joint / marginal), 0),
        information,
        identified,
    ]
    agree(found, expected)


def test_following_difficulty_and_v_information() -> None:
    cz, z, none = (-20 * RNG.random(6) - 1 for _ in range(3))
    length, mask = RNG.integers(1, 9, 6), np.arange(6) < 4
    expected = [cz / none, np.exp((none - cz) / length), cz / z, np.exp((z - cz) / length)]
    arrays = [x.astype(np.float32) for x in (cz, z, none)]
    agree(jax.jit(g.following_difficulty)(*arrays, length), expected, rtol=1e-3)
    bits = ((cz - none) / np.log(2))[mask].mean()
    agree([jax.jit(g.v_information)(arrays[0], arrays[2], mask)], [bits])


def test_sensitivity() -> None:
    clean, hurt = GRID[:2], GRID[2:]
    agree(
        [jax.jit(g.performance_drop_rate)(clean.astype(np.float32), hurt.astype(np.float32))],
        [1 - hurt.sum(1) / clean.sum(1)],
    )
    answers = RNG.integers(0, 3, (4, 6))
    each = []
    for z in range(6):
        have = [answers[c, z] for c in range(4) if THERE[c, z]]
        pairs = list(permutations(have, 2))
        each.append(np.mean([a == b for a, b in pairs]) if pairs else np.nan)
    found = jax.jit(g.consistency_rate)(answers, THERE)
    agree(found, [np.nanmean(each), np.nan_to_num(each)])
