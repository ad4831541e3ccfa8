"""Variance components against closed forms, statsmodels' REML and a dense likelihood."""

from __future__ import annotations

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.generalization.components import (
    Components,
    components_in_tasks,
    variance_components,
)
from instructjax.generalization.decision_study import (
    d_study,
    mean_se,
    model_components,
    optimal_allocation,
)
from instructjax.generalization.reml import fit_reml, reml_log_likelihood


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((6, 1)) + 0.7 * rng.standard_normal(8) + rng.standard_normal((6, 8))


def anova_by_least_squares(columns: dict[str, np.ndarray], y: np.ndarray) -> dict[str, float]:
    """Sequential mean squares by regression on indicators; in balanced data, those of ANOVA."""
    design, before, found = np.ones((len(y), 1)), ((y - y.mean()) ** 2).sum(), {}
    rank = 1
    for name, ids in columns.items():
        design = np.hstack([design, np.eye(ids.max() + 1)[ids]])
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        after, new_rank = (rest**2).sum(), np.linalg.matrix_rank(design)
        found[name] = (before - after) / max(new_rank - rank, 1)
        before, rank = after, new_rank
    found["rest"] = before / max(len(y) - rank, 1)
    return found


def test_repeated_grid_is_anova_by_least_squares() -> None:
    rng = np.random.default_rng(1)
    score = rng.standard_normal((4, 5, 1)) + rng.standard_normal((4, 5, 3))
    c, z, _ = (x.ravel() for x in np.indices(score.shape))
    ms = anova_by_least_squares({"c": c, "z": z, "cz": c * 5 + z}, score.ravel())
    found = jax.jit(variance_components)(score.astype(np.float32))
    expected = (
        (ms["c"] - ms["cz"]) / 15,
        (ms["z"] - ms["cz"]) / 12,
        (ms["cz"] - ms["rest"]) / 3,
        ms["rest"],
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tasks_are_anova_by_least_squares() -> None:
    rng = np.random.default_rng(2)
    score = rng.standard_normal((5, 1, 1)) + rng.standard_normal((5, 3, 4))
    t, c, z = (x.ravel() for x in np.indices(score.shape))
    ms = anova_by_least_squares({"t": t, "c": t * 3 + c, "z": t * 4 + z}, score.ravel())
    found = jax.jit(components_in_tasks)(score.astype(np.float32))
    expected = (
        (ms["t"] - ms["c"] - ms["z"] + ms["rest"]) / 12,
        (ms["c"] - ms["rest"]) / 4,
        (ms["z"] - ms["rest"]) / 3,
        ms["rest"],
        0,
        0,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_estimates_are_unbiased() -> None:
    def one(key):
        a, b, c = jax.random.split(key, 3)
        score = 0.5 * jax.random.normal(a, (6, 1)) + jax.random.normal(b, (1, 10))
        return variance_components(score + 2 * jax.random.normal(c, (6, 10)))

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    for values, truth in zip(found[:3], (0.25, 1.0, 4.0), strict=True):
        assert abs(values.mean() - truth) < 4 * values.std() / 4000**0.5


def test_reml_of_a_complete_grid_is_anova(grid) -> None:
    with jax.enable_x64(True):
        fit, anova = jax.jit(fit_reml)(grid), variance_components(grid)
        np.testing.assert_allclose(np.stack(fit.components), np.stack(anova), rtol=1e-6)
        assert float(fit.mean) == pytest.approx(grid.mean(), abs=1e-10)
        se = d_study(anova, 6, 8)
        assert float(fit.se) == pytest.approx(float(se), rel=1e-6)


@pytest.mark.slow
def test_reml_with_holes_is_statsmodels(grid) -> None:
    import statsmodels.api as sm

    there = np.random.default_rng(3).random(grid.shape) > 0.35
    c, z = np.indices(grid.shape)
    y = grid[there]
    parts = {"c": {0.0: np.eye(6)[c[there]]}, "z": {0.0: np.eye(8)[z[there]]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.MixedLM(y, np.ones((len(y), 1)), groups=np.zeros(len(y)), exog_vc=parts)
        fit = model.fit(reml=True, method=["powell", "bfgs"])
    with jax.enable_x64(True):
        ours = jax.jit(fit_reml)(grid, there)
    expected = [*fit.vcomp, fit.scale]
    np.testing.assert_allclose(np.stack(ours.components)[:3], expected, rtol=2e-3, atol=1e-4)
    assert float(ours.mean) == pytest.approx(float(fit.fe_params[0]), abs=1e-3)
    assert float(ours.log_likelihood) >= fit.llf - 1e-6
    in_float32 = fit_reml(grid.astype(np.float32), there)
    np.testing.assert_allclose(
        np.stack(in_float32.components), np.stack(ours.components), rtol=2e-2, atol=1e-3
    )


def test_likelihood_is_the_dense_one() -> None:
    """The textbook's restricted likelihood with the full covariance matrix; uneven repeats."""
    rng = np.random.default_rng(4)
    score, there = rng.standard_normal((4, 5, 3)), rng.random((4, 5, 3)) > 0.4
    sd = np.array([0.7, 0.3, 0.5, 1.1])
    y, (c, z, _) = score[there], np.nonzero(there)
    same_c, same_z = c[:, None] == c, z[:, None] == z
    v = sd[0] ** 2 * same_c + sd[1] ** 2 * same_z + sd[2] ** 2 * (same_c & same_z)
    v = v + sd[3] ** 2 * np.eye(len(y))
    inverse, one = np.linalg.inv(v), np.ones(len(y))
    information = one @ inverse @ one
    mean = one @ inverse @ y / information
    square = (y - mean) @ inverse @ (y - mean)
    log_det = np.linalg.slogdet(v)[1] + np.log(information)
    expected = -0.5 * ((len(y) - 1) * np.log(2 * np.pi) + log_det + square)
    count = there.sum(2)
    means = np.where(there, score, 0).sum(2) / np.maximum(count, 1)
    within = (np.where(there, score - means[..., None], 0) ** 2).sum()
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, float) for x in (sd, means, count, within))
        value, (found, variance) = reml_log_likelihood(*arrays)
    assert float(value) == pytest.approx(expected, abs=1e-8)
    assert float(found) == pytest.approx(mean, abs=1e-10)
    assert float(variance) == pytest.approx(1 / information, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "shape", "what"),
    [
        (variance_components, (1, 5), "instructions"),
        (variance_components, (5, 1, 3), "inputs"),
        (components_in_tasks, (1, 2, 3), "tasks"),
        (components_in_tasks, (3, 2, 1), "inputs"),
    ],
)
def test_one_of_a_kind_is_refused(function, shape, what) -> None:
    with pytest.raises(UsageError, match=f"1 of {what}"):
        function(jnp.ones(shape))


def test_no_variance_is_negative() -> None:
    rng = np.random.default_rng(5)
    grid = rng.standard_normal((4, 30)) + np.where(np.arange(4)[:, None] % 2, 1.0, -1.0) * 0
    grid -= grid.mean(1, keepdims=True)  # ANOVA's estimate for instructions is below 0
    assert variance_components(jnp.asarray(grid)).instruction < 0
    fit = fit_reml(grid.astype(np.float32))
    assert float(fit.components.instruction) == pytest.approx(0, abs=1e-6)


def test_standard_error_of_a_mean(grid) -> None:
    found = mean_se(grid)
    assert float(found.se) == pytest.approx(
        float(d_study(variance_components(jnp.asarray(grid)), 6, 8)), rel=1e-5
    )


@pytest.mark.slow
def test_models_are_anova_by_least_squares() -> None:
    rng = np.random.default_rng(6)
    score = rng.standard_normal((3, 1, 1)) + rng.standard_normal((3, 4, 5))
    m, c, z = (x.ravel() for x in np.indices(score.shape))
    ms = anova_by_least_squares(
        {"m": m, "c": c, "z": z, "mc": m * 4 + c, "mz": m * 5 + z, "cz": c * 5 + z}, score.ravel()
    )
    found = jax.jit(model_components)(score.astype(np.float32))
    assert float(found["mcz"]) == pytest.approx(ms["rest"], abs=1e-5)
    assert float(found["mc"]) == pytest.approx((ms["mc"] - ms["rest"]) / 5, abs=1e-5)
    expected = (ms["m"] - ms["mc"] - ms["mz"] + ms["rest"]) / 20
    assert float(found["m"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("costs", [(0.0, 0.0), (20.0, 0.0), (5.0, 3.0)])
def test_best_allocation_is_found_by_trying_all(costs) -> None:
    parts = Components(*jnp.array([0.02, 0.05, 0.1, 0.0]))
    c, z, cz, _ = (float(x) for x in parts)
    best = min(
        (c / i + z / j + cz / (i * j), i, j)
        for i in range(1, 301)
        for j in range(1, 301)
        if i * j + costs[0] * i + costs[1] * j <= 300
    )
    run = partial(optimal_allocation, instruction_cost=costs[0], input_cost=costs[1])
    found = jax.jit(run)(parts, 300.0)
    assert float(found.se) == pytest.approx(best[0] ** 0.5, rel=1e-5)
    assert int(found.instructions * found.inputs) <= 300
