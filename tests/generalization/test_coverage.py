"""A smaller coverage study: the intervals to be used hold the truth, naive ones do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    ["mean, 8 instructions x 100 inputs", "gaps, 20+8 instructions x 50+50 inputs"],
)
def test_intervals_cover(design: str) -> None:
    spec = importlib.util.spec_from_file_location(
        "coverage_study", ROOT / "experiments/coverage.py"
    )
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = study
    spec.loader.exec_module(study)
    found = study.count_covered(study.STUDIES[design](), jax.random.key(1), 500)
    for name, interval in found.items():
        if study.is_advised(name):  # 2 points more on either side: 500 runs are few
            assert 0.91 < interval["coverage"] < 0.99, name
        if name == "naive":
            assert interval["coverage"] < 0.75
