"""What more tasks, instructions or inputs would do, where it is known what the scores vary by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instructjax.generalization.split_recipes import CELLS
from instructjax.report.results import make_results
from instructjax.report.scores import CellScores, pick_scores
from instructjax.report.variance import describe_variance, one_way_in_cells

TASKS, C, Z = 10, 4, 8


def simulate(tasks: int = TASKS, **sd: float) -> CellScores:
    """Tasks of 4 instructions on 8 inputs, whose effects have these standard deviations."""
    rng = np.random.default_rng(0)

    def draw(name: str, *shape: int) -> Any:
        x = rng.standard_normal(shape)
        return sd.get(name, 0.0) * (x / x.std() if x.size > 1 else x)

    score = draw("t", tasks)[:, None, None] + draw("c", tasks, C)[:, :, None]
    score = score + draw("z", tasks, Z)[:, None, :] + draw("cz", tasks, C, Z)
    rows = [
        {"model": "m", "id": f"{t} {c} {z}", "metric": "f1", "value": float(score[t, c, z])}
        | {"task": f"t{t}", "instruction_hash": f"c{t} {c}", "input_hash": f"z{t} {z}"}
        | {"cell": CELLS[0], "status": "ok"}
        for t, c, z in np.ndindex(tasks, C, Z)
    ]
    return pick_scores(make_results(rows), "m", "f1")


def test_where_tasks_dominate_more_tasks_are_what_helps() -> None:
    found = describe_variance(simulate(t=0.3, cz=0.05))
    assert found is not None and found.plan is not None
    assert {part.kind: part.share for part in found.parts}["t"] > 0.8
    errors = {row[0]: float(row[-1]) for row in found.plan.rows}
    expected = (0.3**2 / TASKS + 0.05**2 / (TASKS * C * Z)) ** 0.5
    assert errors[f"as now ({TASKS} × {C} × {Z})"] == pytest.approx(expected, rel=0.1)
    assert errors["twice the tasks"] == pytest.approx(expected / 2**0.5, rel=0.1)
    assert errors["twice the inputs"] == pytest.approx(expected, rel=0.1)
    assert found.advice.startswith("To be surer, add tasks: twice as many make")
    assert "29% smaller" in found.advice


def test_what_is_estimated_as_none_is_0_percent() -> None:
    """Means of instructions are equal: they differ less than by chance."""
    score = np.random.default_rng(0).standard_normal((4, 12))
    score += np.arange(12) - score.mean(1, keepdims=True)
    rows = [
        {"model": "m", "id": f"{c} {z}", "metric": "f1", "value": float(score[c, z])}
        | {"instruction_hash": f"c{c}", "input_hash": f"z{z}", "cell": CELLS[0], "status": "ok"}
        for c, z in np.ndindex(4, 12)
    ]
    section = describe_variance(pick_scores(make_results(rows), "m", "f1"))
    assert section is not None
    percents = {part.kind: part.percent for part in section.parts}
    assert percents["c"] == "0%"
    assert percents["z"] not in ("0%", "<1%")


def test_one_task_is_given() -> None:
    found = describe_variance(simulate(1, c=0.3, cz=0.05))
    assert found is not None and found.plan is not None
    assert [part.kind for part in found.parts] == ["c", "z", "cz"]
    assert [column.name for column in found.plan.columns] == [
        "design",
        "instructions",
        "inputs",
        "SE",
    ]
    assert found.advice.startswith("To be surer, add instructions: twice as many make")


def test_one_way_in_cells_is_unbiased() -> None:
    """Uneven groups, some in two cells, whose means differ; few groups a cell."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(8), [3, 9, 2, 6, 12, 4, 5, 3])
    cell = np.where(group < 4, np.arange(len(group)) % 2, 3)
    found = []
    for _ in range(2000):
        value = 2.0 * cell + rng.standard_normal(8)[group] + 0.3 * rng.standard_normal(len(group))
        found.append(one_way_in_cells(value, group, cell))
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
    assert (np.abs(mean - (1.0, 0.09)) < 4 * spread / 2000**0.5).all()
    assert one_way_in_cells(np.arange(4.0), np.array([0, 0, 1, 1]), np.array([0, 0, 3, 3])) is None
