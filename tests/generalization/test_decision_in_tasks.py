"""Designs of tasks against simulated means and a search by loops."""

from __future__ import annotations

from itertools import product
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.generalization import (
    NestedComponents,
    d_study_in_tasks,
    optimal_allocation_in_tasks,
)
from instructjax.generalization.reml_in_tasks import InputsOf

DESIGNS = get_args(InputsOf)
SD = (0.3, 0.5, 0.8, 0.6, 0.4, 0.7)  # task, instruction, input, c x z, task x z, residual


@pytest.mark.parametrize("inputs_of", DESIGNS)
def test_errors_are_those_of_means_drawn_again_and_again(inputs_of: InputsOf) -> None:
    """Each source's effects are drawn as often as the design has levels of it, and added."""
    rng, draws, (t, c, z, r) = np.random.default_rng(0), 20_000, (3, 2, 4, 2)
    sd = list(SD)
    if inputs_of != "none":
        sd[4] = 0.0
    shapes = {
        "tasks": (t, 1, z, 1),
        "instructions": (t, c, z, 1),
        "none": (1, 1, z, 1),
    }
    sizes = [
        (t, 1, 1, 1),
        (t, c, 1, 1),
        shapes[inputs_of],
        (t, c, z, 1),
        (t, 1, z, 1),
        (t, c, z, r),
    ]
    means = sum(
        s * rng.standard_normal((draws, *size)).mean((1, 2, 3, 4))
        for s, size in zip(sd, sizes, strict=True)
    )
    run = jax.jit(d_study_in_tasks, static_argnames="inputs_of")
    parts = NestedComponents(*jnp.array(sd) ** 2)
    assert float(run(parts, t, c, z, r, inputs_of=inputs_of)) == pytest.approx(
        np.std(means), rel=0.025
    )


@pytest.mark.parametrize("inputs_of", DESIGNS)
def test_best_allocation_is_found_by_trying_all(inputs_of: InputsOf) -> None:
    t, c, z, cz, tz, _ = variances = (0.02, 0.05, 0.1, 0.3, 0.04 * (inputs_of == "none"), 0.0)
    costs = (6.0, 2.0, 0.5)

    def error(i, j, k):
        of_z = {"tasks": i * k, "instructions": i * j * k, "none": k}[inputs_of]
        return t / i + c / (i * j) + z / of_z + cz / (i * j * k) + tz / (i * k)

    def price(i, j, k):
        inputs = {"tasks": i * k, "instructions": i * j * k, "none": k}[inputs_of]
        return i * j * k + costs[0] * i + costs[1] * i * j + costs[2] * inputs

    designs = product(range(1, 21), range(1, 11), range(1, 121))
    best = min(error(*design) for design in designs if price(*design) <= 120)
    found = optimal_allocation_in_tasks(
        NestedComponents(*jnp.array(variances)),
        120.0,
        inputs_of=inputs_of,
        task_cost=costs[0],
        instruction_cost=costs[1],
        input_cost=costs[2],
        most_tasks=20,
        most_instructions=10,
    )
    assert float(found.se) == pytest.approx(best**0.5, rel=1e-5)
    assert price(int(found.tasks), int(found.instructions), int(found.inputs)) <= 120
