"""Functions of arrays give under `jax.jit` what they give without it.

That this is right is told by `test_numpy_twins` and the files of each theme.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import generalization as g

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
GRID = RNG.random((4, 6)).astype(np.float32)
THERE = RNG.random((4, 6)) > 0.25
FLAT = GRID.ravel()
C, Z = (x.ravel() for x in np.indices(GRID.shape))
CELL = 2 * (C >= 2) + (Z >= 3)
NATS = -10 * RNG.random((4, 5, 7)).astype(np.float32)
TOKENS = np.arange(7) < np.array([[7], [5], [3], [2], [1]])
SQUARE = NATS[:, :4, :4]
PARTS = g.Components(*jnp.array([0.02, 0.05, 0.1, 0.03]))
P = np.array([0.01, 0.04, 0.03, 0.2], np.float32)
N = np.array([1, 2, 4, 8, 16, 32], np.float32)
CURVE = (0.8 - 0.5 * N**-0.5).astype(np.float32)

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "cell_influence": (g.cell_influence, (FLAT, np.asarray(g.cell_weights(CELL)))),
    "generalization_gaps": (g.generalization_gaps, (P,)),
    "threshold_test": (partial(g.threshold_test, epsilon=0.4), (P, P, np.float32(7) + P)),
    "ratio_influence": (g.ratio_influence, (FLAT, 1 + FLAT)),
    "t_interval": (g.t_interval, (P, P, np.float32(7) + P)),
    "crossed_bootstrap": (partial(g.crossed_bootstrap, draws=8), (KEY, GRID, THERE)),
    "pigeonhole": (partial(g.crossed_bootstrap, draws=8, kind="pigeonhole"), (KEY, GRID)),
    "nested_bootstrap": (partial(g.nested_bootstrap, draws=8), (KEY, GRID, THERE)),
    "bootstrap_records": (
        partial(g.bootstrap_records, num_clusters=(4, 6), draws=8),
        (KEY, FLAT, (C, Z)),
    ),
    "holm": (g.holm, (P,)),
    "benjamini_hochberg": (g.benjamini_hochberg, (P,)),
    "max_t": (g.max_t, (P, RNG.standard_normal((50, 4)).astype(np.float32))),
    "components_in_tasks": (g.components_in_tasks, (RNG.random((3, 2, 4)).astype(np.float32),)),
    "model_components": (g.model_components, (RNG.random((3, 2, 4)).astype(np.float32),)),
    "fit_reml": (g.fit_reml, (GRID, THERE)),
    "d_study": (g.d_study, (PARTS, 4, 16, 2)),
    "mean_se": (g.mean_se, (GRID,)),
    "g_coefficients": (g.g_coefficients, tuple(map(jnp.asarray, (0.03, 0.01, 0.02)))),
    "optimal_allocation": (g.optimal_allocation, (PARTS, 400.0)),
    "rasch_complete": (g.rasch_complete, (GRID.round(), THERE)),
    "spread_noise": (partial(g.spread_noise, permutations=20), (KEY, GRID, THERE)),
    "performance_drop_rate": (g.performance_drop_rate, (GRID, GRID[::-1].copy())),
    "consistency_rate": (g.consistency_rate, (RNG.integers(0, 3, (4, 6)), THERE)),
    "following_difficulty": (g.following_difficulty, (*NATS[:3], np.full((5, 7), 4))),
    "v_information": (g.v_information, (NATS[0, :, 0], NATS[1, :, 0], TOKENS[:, 2])),
    "marginal_attribution": (g.marginal_attribution, (SQUARE.transpose(1, 2, 0),)),
    "log_prob_moments": (g.log_prob_moments, (np.asarray(jax.nn.log_softmax(NATS)),)),
    "fit_power_law": (g.fit_power_law, (N, CURVE)),
    "scaling_curve": (partial(g.scaling_curve, subsets=8), (KEY, GRID, np.array([1, 3]))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_changes_nothing(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    plain = jax.tree.leaves(function(*arguments))
    compiled = jax.tree.leaves(jax.jit(function)(*arguments))
    assert len(plain) == len(compiled) > 0
    for one, other in zip(plain, compiled, strict=True):
        assert np.isfinite(np.asarray(one)).all()
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)
