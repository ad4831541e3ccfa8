"""Differences of models: as wrong as promised where tasks differ, weighted as the models are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instructjax.generalization.split_recipes import CELLS
from instructjax.report.comparison import ModelSection, compare_models
from instructjax.report.results import make_results

T, Z = 12, 10


def compare(values: np.ndarray, tasks: np.ndarray, **options: Any) -> ModelSection:
    """Two models' values of inputs of tasks, [2, N], all in cell 3; an instruction a task."""
    rows = [
        {
            "model": f"model {m}",
            "id": str(i),
            "metric": "f1",
            "value": float(value),
            "task": f"task {task}",
            "cell": CELLS[3],
            "instruction_hash": f"c{task} {i % 2}",
            "input_hash": f"z{i}",
            "status": "ok",
        }
        for m in range(2)
        for i, (value, task) in enumerate(zip(values[m], tasks, strict=True))
    ]
    section = compare_models(make_results(rows), "f1", {"weights": "micro", **options})
    assert section is not None
    return section


def test_what_tasks_share_is_no_evidence() -> None:
    """The models are equally good over tasks; in each task one of them is better."""
    rng, tasks = np.random.default_rng(0), np.repeat(np.arange(T), Z)
    marked = 0
    for _ in range(100):
        values = 0.1 * rng.standard_normal((2, T))[:, tasks]
        values += 0.1 * rng.standard_normal((2, T * Z))
        section = compare(values, tasks)
        marked += section.tables[2].rows[0][-1].endswith("*")
    assert marked <= 12  # of 5 expected; 25 and more by instruction and input alone


@pytest.mark.parametrize(("weights", "expected"), [("micro", 0.2), ("macro", 0.3)])
def test_tasks_count_as_they_do_in_means(weights: str, expected: float) -> None:
    """Of 10 records 5 gain 0.4, of 4 tasks 3 do."""
    tasks = np.repeat(np.arange(4), [3, 5, 1, 1])
    values = np.stack([np.zeros(10), np.where(tasks == 1, 0.0, 0.4)])
    section = compare(values, tasks, weights=weights)
    assert float(section.tables[2].rows[0][-1].split()[0]) == pytest.approx(expected, abs=5e-3)
