"""Bootstraps against the variances that theory gives them, and a loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.generalization import bootstrap as b

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((12, 15))
    return (rng.standard_normal((12, 1)) + rng.standard_normal(15) + noise).astype(np.float32)


@pytest.mark.parametrize("kind", ["exponential", "pigeonhole"])
def test_draws_are_weighted_means(grid, kind: b.Kind, monkeypatch) -> None:
    """Against a loop, with the weights that were drawn."""
    drawn = []
    real = b.draw_weights

    def spy(key, draws, count, kind: b.Kind = "exponential"):
        weights = real(key, draws, count, kind)
        jax.debug.callback(lambda w: drawn.append(np.asarray(w, np.float64)), weights, ordered=True)
        return weights

    monkeypatch.setattr(b, "draw_weights", spy)
    mask = np.random.default_rng(1).random(grid.shape) > 0.3
    run = jax.jit(partial(b.crossed_bootstrap, draws=250, kind=kind))
    found = np.asarray(run(KEY, grid, mask))
    of_c, of_z = drawn
    for i in range(0, 250, 50):
        weight = np.outer(of_c[i], of_z[i]) * mask
        assert found[i] == pytest.approx((weight * grid).sum() / weight.sum(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exponential", "pigeonhole"])
def test_spread_is_that_of_rows_and_columns(grid, kind) -> None:
    """Owen (2007): the variance is that of rows plus that of columns, and some of cz."""
    draws = b.crossed_bootstrap(KEY, grid, draws=4000, kind=kind)
    e = grid - grid.mean()
    n = e.size
    rows, columns = (e.sum(1) ** 2).sum() / n**2, (e.sum(0) ** 2).sum() / n**2
    most = rows + columns + 1.5 * (e**2).sum() / n**2
    assert rows + columns < float(draws.var()) * 1.1
    assert float(draws.var()) < most * 1.15


@pytest.mark.slow
def test_models_share_their_draws(grid) -> None:
    both = jnp.stack([jnp.asarray(grid) + 0.5, jnp.asarray(grid)])
    apart = b.crossed_bootstrap(KEY, both, statistic=lambda m: m[0] - m[1], draws=300)
    np.testing.assert_allclose(apart, 0.5, atol=1e-5)


def test_records_are_the_grid(grid) -> None:
    c, z = (x.ravel() for x in np.indices(grid.shape))
    run = jax.jit(partial(b.bootstrap_records, num_clusters=(12, 15), draws=250))
    flat = run(KEY, grid.ravel(), (c, z))
    crossed = b.crossed_bootstrap(KEY, grid, draws=250)
    np.testing.assert_allclose(flat[:, 0], crossed, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("macro", [True, False])
def test_nested_spread(macro: bool) -> None:
    """Variance over tasks plus, on average, that in tasks."""
    rng = np.random.default_rng(4)
    score = (rng.standard_normal((30, 1)) + rng.standard_normal((30, 8))).astype(np.float32)
    draws = b.nested_bootstrap(KEY, score, draws=4000, kind="pigeonhole", macro=macro)
    of_task = score.mean(1)
    expected = of_task.var() / 30 + score.var(1).mean() / (30 * 8)
    assert float(draws.mean()) == pytest.approx(score.mean(), abs=0.02)
    assert float(draws.var()) == pytest.approx(expected, rel=0.12)


def test_weights_of_a_pigeonhole_are_counts() -> None:
    weights = np.asarray(b.draw_weights(KEY, 50, 7, "pigeonhole"))
    assert (weights.sum(1) == 7).all()
    assert (weights == weights.round()).all()


def test_percentiles_are_numpys() -> None:
    draws = np.random.default_rng(2).random((999, 3)).astype(np.float32)
    low, high = b.percentile_interval(draws, 0.9)
    np.testing.assert_allclose(low, np.quantile(draws, 0.05, axis=0), rtol=1e-5)
    np.testing.assert_allclose(high, np.quantile(draws, 0.95, axis=0), rtol=1e-5)
