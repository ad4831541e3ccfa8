"""Components in tasks against ANOVA, a dense likelihood and its maximum by scipy."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from instructjax.errors import UsageError
from instructjax.generalization import components_in_tasks, fit_reml, fit_reml_in_tasks
from instructjax.generalization.reml_in_tasks import InputsOf, reml_log_likelihood_in_tasks

DESIGNS = get_args(InputsOf)


def same_pairs(there: np.ndarray, inputs_of: InputsOf) -> list[np.ndarray]:
    """Which scores share each source, in the order of the components, as dense matrices."""
    t, c, z, _ = np.nonzero(there)
    task, instruction = t[:, None] == t, (t[:, None] == t) & (c[:, None] == c)
    column = z[:, None] == z
    of_input = {"tasks": task & column, "instructions": 0 * column, "none": column}[inputs_of]
    task_input = task & column if inputs_of == "none" else 0 * column
    return [task, instruction, of_input, instruction & column, task_input, np.eye(len(t))]


def dense(sd: np.ndarray, y: np.ndarray, same: list[np.ndarray]) -> tuple[float, float, float]:
    """The textbook's restricted likelihood; the mean; its variance."""
    v = sum(s**2 * matrix for s, matrix in zip(sd, same, strict=True))
    inverse, one = np.linalg.inv(v), np.ones(len(y))
    information = one @ inverse @ one
    mean = one @ inverse @ y / information
    log_det = np.linalg.slogdet(v)[1] + np.log(information)
    square = (y - mean) @ inverse @ (y - mean)
    value = -0.5 * ((len(y) - 1) * np.log(2 * np.pi) + log_det + square)
    return float(value), float(mean), float(1 / information)


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    t, c, z, r = shape
    score = 3 + rng.standard_normal((t, 1, 1, 1)) + 0.8 * rng.standard_normal((t, c, 1, 1))
    score = score + 0.7 * rng.standard_normal((t, 1, z, 1)) + rng.standard_normal((1, 1, z, 1))
    return score + 0.6 * rng.standard_normal((t, c, z, 1)) + 0.5 * rng.standard_normal(shape)


@pytest.mark.parametrize("inputs_of", DESIGNS)
def test_likelihood_is_the_dense_one(inputs_of: InputsOf) -> None:
    rng = np.random.default_rng(0)
    score, there = draw(rng, (3, 3, 4, 2)), rng.random((3, 3, 4, 2)) > 0.4
    sd = np.array([0.9, 0.7, 0.5, 0.4, 0.3, 1.1])
    if inputs_of == "instructions":
        sd[2] = 0
    if inputs_of != "none":
        sd[4] = 0
    expected = dense(sd, score[there], same_pairs(there, inputs_of))
    count = there.sum(3)
    means = np.where(there, score, 0).sum(3) / np.maximum(count, 1)
    within = (np.where(there, score - means[..., None], 0) ** 2).sum((1, 2, 3))
    run = jax.jit(reml_log_likelihood_in_tasks, static_argnums=4)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, float) for x in (sd, means, count, within))
        value, (mean, variance) = run(*arrays, inputs_of)
    np.testing.assert_allclose([value, mean, variance], expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("inputs_of", DESIGNS)
@pytest.mark.parametrize("repeats", [1, 2])
def test_fit_of_uneven_tasks_is_the_maximum_that_scipy_finds(
    inputs_of: InputsOf, repeats: int
) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 3, 6, repeats)
    score, there = draw(rng, shape), rng.random(shape) > 0.25
    there[1, 2] = there[2, :, 3:] = False  # a task with fewer instructions, one with fewer inputs
    used = np.array([True, True, inputs_of != "instructions", True, inputs_of == "none", True])
    used[5] = repeats > 1
    same, y = same_pairs(there, inputs_of), score[there]
    if repeats == 1:
        same = [*same[:5], np.zeros_like(same[5])]

    def loss(some):
        sd = np.zeros(6)
        sd[used] = some
        return -dense(sd, y, same)[0]

    starts = [np.full(used.sum(), x) for x in (0.4, 0.9)]
    best = min((optimize.minimize(loss, x, tol=1e-10) for x in starts), key=lambda r: r.fun)
    expected = np.zeros(6)
    expected[used] = best.x**2
    if inputs_of == "instructions":  # what varies in an instruction is its inputs
        expected[2], expected[3] = expected[3], 0
    with jax.enable_x64(True):
        fit = jax.jit(fit_reml_in_tasks, static_argnames="inputs_of")(
            score, there, inputs_of=inputs_of
        )
    np.testing.assert_allclose(np.stack(fit.components), expected, rtol=1e-3, atol=1e-4)
    assert float(fit.log_likelihood) == pytest.approx(-best.fun, abs=1e-6)
    full = np.zeros(6)
    full[used] = best.x
    _, mean, variance = dense(full, y, same)
    assert float(fit.mean) == pytest.approx(mean, abs=1e-4)
    assert float(fit.se) == pytest.approx(variance**0.5, rel=1e-3)


@pytest.mark.slow
def test_complete_tasks_are_anova() -> None:
    score = draw(np.random.default_rng(2), (8, 4, 5, 1))[..., 0]
    with jax.enable_x64(True):
        fit, anova = fit_reml_in_tasks(score), components_in_tasks(score)
    assert min(map(float, anova)) >= 0
    np.testing.assert_allclose(np.stack(fit.components), np.stack(anova), rtol=1e-5, atol=1e-9)
    # The mean of a complete nested design is that of its tasks' means, on T - 1 degrees.
    se = score.mean((1, 2)).std(ddof=1) / 8**0.5
    assert float(fit.se) == pytest.approx(se, rel=1e-6)
    assert float(fit.df) == 7


@pytest.mark.slow
def test_one_instruction_a_task_is_one_way_anova() -> None:
    """As in Super-NaturalInstructions: what an instruction adds is part of its task."""
    score = draw(np.random.default_rng(3), (9, 1, 12, 1))[..., 0]
    with jax.enable_x64(True):
        fit, anova = fit_reml_in_tasks(score), components_in_tasks(score)
    np.testing.assert_allclose(np.stack(fit.components), np.stack(anova), rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_statsmodels_agrees_on_uneven_tasks() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(4)
    score, there = draw(rng, (12, 3, 6, 1))[..., 0], rng.random((12, 3, 6)) > 0.3
    t, c, z = np.nonzero(there)
    y = score[there]
    parts = {"c": {}, "z": {}}
    for task in range(12):
        parts["c"][task] = np.eye(3)[c[t == task]]
        parts["z"][task] = np.eye(6)[z[t == task]]
    model = sm.MixedLM(y, np.ones((len(y), 1)), groups=t, exog_re=np.ones((len(y), 1)))
    model = sm.MixedLM(
        y, np.ones((len(y), 1)), groups=t, exog_re=np.ones((len(y), 1)), exog_vc=parts
    )
    fit = model.fit(reml=True, method=["powell", "bfgs"])
    with jax.enable_x64(True):
        ours = fit_reml_in_tasks(score, there)
    expected = [float(fit.cov_re[0, 0]), *fit.vcomp, fit.scale]
    np.testing.assert_allclose(np.stack(ours.components)[:4], expected, rtol=5e-3, atol=1e-3)
    assert float(ours.log_likelihood) >= fit.llf - 1e-6


@pytest.mark.parametrize("inputs_of", DESIGNS)
def test_scores_that_do_not_vary_have_no_variance(inputs_of: InputsOf) -> None:
    fit = fit_reml_in_tasks(jnp.full((3, 2, 4), 0.1), inputs_of=inputs_of)
    assert [float(x) for x in fit.components] == [0.0] * 6
    assert float(fit.mean) == pytest.approx(0.1)
    assert float(fit.se) == 0
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(fit))


def test_constant_grids_have_no_variance() -> None:
    there = np.random.default_rng(5).random((4, 5, 2)) > 0.3
    for mask in (None, there):
        fit = fit_reml(jnp.full((4, 5, 2), 0.1), mask)
        assert [float(x) for x in fit.components] == [0.0] * 4
        assert float(fit.se) == 0
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(fit))


def test_one_task_is_refused() -> None:
    with pytest.raises(UsageError, match="one task"):
        fit_reml_in_tasks(jnp.ones((1, 2, 3)))
