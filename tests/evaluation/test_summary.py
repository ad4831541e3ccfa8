"""Means, standard errors by cluster and paired differences, against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from instructjax.evaluation import clustered_mean, compare_models, summarize


def test_every_value_its_own_cluster_is_the_usual_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=30)
    mean, error, count = clustered_mean(values, np.arange(30))
    assert (mean, count) == (pytest.approx(values.mean()), 30)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=1e-12)


def test_clusters_by_hand() -> None:
    # Mean 2; residual sums of the clusters -3, 3 over 4 rows: sqrt(2 (9 + 9) / 16).
    mean, error, count = clustered_mean(
        np.array([0.0, 1.0, 3.0, 4.0]), np.array(["a", "a", "b", "b"])
    )
    assert (mean, error, count) == (2.0, 1.5, 2)
    # Copies of every row change nothing, unless they are taken for independent.
    twice = np.repeat([0.0, 1.0, 3.0, 4.0], 10)
    assert clustered_mean(twice, np.repeat(["a", "a", "b", "b"], 10))[1] == pytest.approx(1.5)
    assert clustered_mean(twice, np.arange(40))[1] < 0.3


def test_one_cluster_has_no_error_and_no_rows_no_mean() -> None:
    mean, error, count = clustered_mean(np.array([1.0, 3.0]), np.array(["a", "a"]))
    assert mean == 2 and math.isnan(error) and count == 1
    assert math.isnan(clustered_mean(np.array([]), np.array([]))[0])


def test_weights_are_repetitions() -> None:
    weighted = clustered_mean(
        np.array([1.0, 0.0, 0.5]), np.array([0, 1, 2]), np.array([1.0, 2.0, 2.0])
    )
    repeated = clustered_mean(np.array([1.0, 0.0, 0.0, 0.5, 0.5]), np.array([0, 1, 1, 2, 2]))
    assert weighted == pytest.approx(repeated)


def make_columns(rows: list[tuple[str, str, str, float, str]]) -> dict[str, np.ndarray]:
    names = ("model", "id", "metric", "value", "instruction_hash")
    columns = {
        name: np.array(x, object) for name, x in zip(names, zip(*rows, strict=True), strict=True)
    }
    columns["value"] = columns["value"].astype(float)
    columns["input_hash"] = columns["id"]
    columns["num_references"] = np.ones(len(rows), np.int32)
    return columns


def test_models_are_paired_row_by_row() -> None:
    a, b = [1.0, 2.0, math.nan, 4.0], [1.5, 2.0, 9.0, 5.0]
    clusters = ["x", "x", "y", "y"]
    columns = make_columns(
        [
            (model, str(i), "f1", value, clusters[i])
            for model, values in (("a", a), ("b", b))
            for i, value in enumerate(values)
        ]
    )
    (one,) = compare_models(columns)
    assert (one.model, one.baseline, one.num_examples) == ("b", "a", 3)
    assert one.difference == pytest.approx(0.5)
    # Differences .5, 0 in x and 1 in y, mean .5: sums -.5 and .5 over 3.
    assert one.standard_error == pytest.approx(math.sqrt(2 * 2 * (0.5 / 3) ** 2))
    first, second = summarize(columns)
    assert (first.mean, first.num_missing, second.mean) == (pytest.approx(7 / 3), 1, 4.375)
