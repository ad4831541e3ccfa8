"""Components in tasks against ANOVA, a dense likelihood and its maximum by scipy."""

from __future__ import annotations

import warnings
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


def dense(
    sd: np.ndarray, y: np.ndarray, same: list[np.ndarray], x: np.ndarray | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """The textbook's restricted likelihood with the columns of x; coefficients; variances."""
    v = sum(s**2 * matrix for s, matrix in zip(sd, same, strict=True))
    x = np.ones((len(y), 1)) if x is None else x
    inverse = np.linalg.inv(v)
    information = x.T @ inverse @ x
    mean = np.linalg.solve(information, x.T @ inverse @ y)
    log_det = np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1]
    square = (y - x @ mean) @ inverse @ (y - x @ mean)
    value = -0.5 * ((len(y) - x.shape[1]) * np.log(2 * np.pi) + log_det + square)
    return float(value), mean, np.diag(np.linalg.inv(information))


def make_groups(shape: tuple[int, ...]) -> np.ndarray:
    """Cells of seen and unseen c and z: of each task's instructions, and of inputs, a half."""
    c, z = np.indices(shape[-2:])
    return np.broadcast_to(2 * (c >= shape[-2] // 2) + (z >= shape[-1] // 2), shape)


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    t, c, z, r = shape
    score = 3 + rng.standard_normal((t, 1, 1, 1)) + 0.8 * rng.standard_normal((t, c, 1, 1))
    score = score + 0.7 * rng.standard_normal((t, 1, z, 1)) + rng.standard_normal((1, 1, z, 1))
    return score + 0.6 * rng.standard_normal((t, c, z, 1)) + 0.5 * rng.standard_normal(shape)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("inputs_of", DESIGNS)
def test_likelihood_is_the_dense_one(inputs_of: InputsOf, grouped: bool) -> None:
    rng = np.random.default_rng(0)
    score, there = draw(rng, (3, 3, 4, 2)), rng.random((3, 3, 4, 2)) > 0.4
    sd = np.array([0.9, 0.7, 0.5, 0.4, 0.3, 1.1])
    if inputs_of == "instructions":
        sd[2] = 0
    if inputs_of != "none":
        sd[4] = 0
    groups = make_groups((3, 3, 4)) if grouped else None
    x = (
        None
        if groups is None
        else np.eye(4)[np.broadcast_to(groups[..., None], there.shape)[there]]
    )
    expected = dense(sd, score[there], same_pairs(there, inputs_of), x)
    count = there.sum(3)
    means = np.where(there, score, 0).sum(3) / np.maximum(count, 1)
    within = (np.where(there, score - means[..., None], 0) ** 2).sum((1, 2, 3))
    run = jax.jit(reml_log_likelihood_in_tasks, static_argnums=4)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, float) for x in (sd, means, count, within))
        value, (mean, variance) = run(*arrays, inputs_of, groups)
    assert np.shape(mean) == ((4,) if grouped else ())
    for found, wanted in zip((value, mean, variance), expected, strict=True):
        np.testing.assert_allclose(found, np.squeeze(wanted), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("inputs_of", DESIGNS)
@pytest.mark.parametrize(("repeats", "grouped"), [(1, False), (2, False), (1, True)])
def test_fit_of_uneven_tasks_is_the_maximum_that_scipy_finds(
    inputs_of: InputsOf, repeats: int, grouped: bool
) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 3, 6, repeats)
    score, there = draw(rng, shape), rng.random(shape) > 0.25
    there[1, 2] = there[2, :, 3:] = False  # a task with fewer instructions, one with fewer inputs
    groups = make_groups(shape[:3]) if grouped else None
    x = None if groups is None else np.eye(4)[np.broadcast_to(groups[..., None], shape)[there]]
    used = np.array([True, True, inputs_of != "instructions", True, inputs_of == "none", True])
    used[5] = repeats > 1
    same, y = same_pairs(there, inputs_of), score[there]
    if repeats == 1:
        same = [*same[:5], np.zeros_like(same[5])]

    def loss(some):
        sd = np.zeros(6)
        sd[used] = some
        return -dense(sd, y, same, x)[0]

    starts = [np.full(used.sum(), x) for x in (0.4, 0.9)]
    best = min((optimize.minimize(loss, x, tol=1e-10) for x in starts), key=lambda r: r.fun)
    expected = np.zeros(6)
    expected[used] = best.x**2
    if inputs_of == "instructions":  # what varies in an instruction is its inputs
        expected[2], expected[3] = expected[3], 0
    with jax.enable_x64(True):
        fit = jax.jit(fit_reml_in_tasks, static_argnames="inputs_of")(
            score, there, inputs_of=inputs_of, groups=groups
        )
    np.testing.assert_allclose(np.stack(fit.components), expected, rtol=1e-3, atol=1e-4)
    assert float(fit.log_likelihood) == pytest.approx(-best.fun, abs=1e-6)
    full = np.zeros(6)
    full[used] = best.x
    _, mean, variance = dense(full, y, same, x)
    np.testing.assert_allclose(fit.mean, np.squeeze(mean), atol=1e-4)
    np.testing.assert_allclose(fit.se, np.squeeze(variance) ** 0.5, rtol=1e-3)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.MixedLM(
            y, np.ones((len(y), 1)), groups=t, exog_re=np.ones((len(y), 1)), exog_vc=parts
        )
        fit = model.fit(reml=True, method=["powell", "bfgs"])
    with jax.enable_x64(True):
        ours = fit_reml_in_tasks(score, there)
    expected = [float(fit.cov_re[0, 0]), *fit.vcomp, fit.scale]
    np.testing.assert_allclose(np.stack(ours.components)[:4], expected, rtol=5e-3, atol=1e-3)
    assert float(ours.log_likelihood) >= fit.llf - 1e-6


@pytest.mark.parametrize(
    "inputs_of", [pytest.param(x, marks=() if x == "tasks" else pytest.mark.slow) for x in DESIGNS]
)
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


@pytest.mark.slow
@pytest.mark.parametrize("in_tasks", [False, True])
def test_means_of_groups_take_their_degrees_of_freedom(in_tasks: bool) -> None:
    """Four and six instructions, a half of them new: the variance of instructions is not smaller.

    With the cells' means subtracted before, it is.
    """
    # Tasks differ as much as instructions: an estimate that is often cut at 0 would be biased.
    tasks, c, z = (6, 4, 8) if in_tasks else (1, 6, 10)
    groups = make_groups((tasks, c, z))
    fit = fit_reml_in_tasks if in_tasks else fit_reml

    def run(key):
        keys = jax.random.split(key, 4)
        score = jax.random.normal(keys[0], (tasks, c, 1)) + groups
        score += jax.random.normal(keys[3], (tasks, 1, 1))
        score += 0.7 * jax.random.normal(keys[1], (tasks, 1, z))
        score += 0.3 * jax.random.normal(keys[2], (tasks, c, z))
        member = jnp.eye(4)[groups]
        means = jnp.einsum("tczk,tcz->k", member, score) / member.sum((0, 1, 2))
        centred = score - member @ means
        if not in_tasks:
            return fit(score[0], groups=groups[0]).components, fit(centred[0]).components
        return fit(score, groups=groups).components, fit(centred).components

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 1000)
        found, centred = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys))
    for truth, values in ((1.0, found.instruction), (0.49, found.input), (0.09, found.interaction)):
        assert abs(values.mean() - truth) < 4 * values.std() / 1000**0.5
    assert centred.instruction.mean() < 1 - 4 * centred.instruction.std() / 1000**0.5


@pytest.mark.slow
def test_what_the_means_of_groups_take_up_is_no_variance() -> None:
    """One seen and one unseen instruction: how far instructions differ is not known."""
    score = draw(np.random.default_rng(6), (1, 2, 8, 1))[0, ..., 0] + 5 * np.arange(2)[:, None]
    groups = 2 * np.arange(2)[:, None] + np.zeros((2, 8), int)
    with jax.enable_x64(True):
        fit = fit_reml(score, groups=groups)
        each = fit_reml(score, groups=np.arange(4).reshape(2, 2).repeat(4, 1))
    assert float(fit.components.instruction) == 0
    np.testing.assert_allclose(fit.mean[::2], score.mean(1))
    assert float(fit.components.input) > 0
    assert float(each.components.instruction) == 0
    alone = fit_reml(jnp.eye(2), groups=jnp.arange(4).reshape(2, 2))
    assert [float(x) for x in alone.components] == [0.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [2, 3])
def test_shared_inputs_each_in_a_group_of_its_own_have_no_variance(inputs: int) -> None:
    """Two inputs, one seen and one unseen, in all tasks: the groups' means say all of them."""
    rng = np.random.default_rng(7)
    score = rng.standard_normal((4, 2, inputs)) + 9 * np.array([0, 1, 2])[:inputs]
    groups = np.broadcast_to(np.arange(inputs), score.shape)
    with jax.enable_x64(True):
        alone = fit_reml_in_tasks(score, inputs_of="none", groups=groups)
        two = fit_reml_in_tasks(score, inputs_of="none", groups=np.minimum(groups, inputs - 2))
    assert float(alone.components.input) == 0
    np.testing.assert_allclose(alone.mean[:inputs], score.mean((0, 1)))
    assert float(two.components.input) > 1


def test_one_task_is_refused() -> None:
    with pytest.raises(UsageError, match="one task"):
        fit_reml_in_tasks(jnp.ones((1, 2, 3)))
