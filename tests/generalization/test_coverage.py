"""A smaller coverage study: the intervals to be used hold the truth, naive ones do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from instructjax.generalization import analyze

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)  # beside it is what it imports
    spec = importlib.util.spec_from_file_location("coverage_study", FOLDER / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    ["mean, 8 instructions x 100 inputs", "gaps, 20+8 instructions x 50+50 inputs"],
)
def test_intervals_cover(study: Any, design: str) -> None:
    found = study.count_covered(study.STUDIES[design](), jax.random.key(1), 500)
    for name, interval in found.items():
        if study.is_advised(name):  # 2 points more on either side: 500 runs are few
            assert 0.91 < interval["coverage"] < 0.99, name
        if name == "naive":
            assert interval["coverage"] < 0.75


@pytest.mark.parametrize(
    "design",
    ["gaps, 8+8 very uneven tasks of 1 x 40", "gaps, wordings of 8 very uneven tasks of 4 x 40"],
)
def test_intervals_of_gaps_in_tasks_cover(study: Any, design: str) -> None:
    found = study.count_covered(study.STUDIES[design](), jax.random.key(1), 400)
    for name, interval in found.items():
        if study.is_advised(name):
            assert 0.92 < interval["coverage"] < 0.985, name
    # Between whole tasks, scores of a task are far from independent.
    if "8+8" in design:
        assert found["inter gap, micro, naive"]["coverage"] < 0.8


@pytest.mark.parametrize("weights", ["micro", "macro"])
def test_the_study_in_tasks_is_of_what_a_report_tells(study: Any, weights: Any) -> None:
    """The same key, through `analyze`: instructions and inputs of tasks, 16 uneven ones."""
    import coverage_in_tasks as designs

    key, shape = jax.random.key(2), (16, 3, 40)
    with jax.enable_x64(True):
        intervals = designs.gaps_by_task(8, 8, 3, 40, "very uneven")(key)
        tasks, of_c, of_z = (x.ravel() for x in np.indices(shape))
        cell = np.where(tasks >= 8, 3, of_z % 2)
        score = designs.draw_in_tasks(key, shape, np.stack([cell // 2, cell % 2]))
    kept = of_z < designs.number_of_inputs(16, 40, "very uneven")[tasks]
    columns = (np.asarray(score), tasks * 3 + of_c, tasks * 40 + of_z, tasks, cell)
    told = analyze(*(column[kept] for column in columns), weights=weights)
    assert told.unit == "tasks"
    for name in ("intra", "inter", "joint"):
        gap, se, df = map(float, intervals[f"{name} gap, {weights}, t (default)"])
        estimate = getattr(told.gaps, name)
        assert (estimate.estimate, estimate.se, estimate.df) == pytest.approx((gap, se, df))
