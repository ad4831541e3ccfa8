"""Means of an evaluation, and paired differences between models, with standard errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a metric over a model's examples.

    Attributes:
      model, metric: whose, of what.
      mean: over the rows that have a value; for `ifeval_instruction_*` over constraints.
      standard_error: clustered by instruction; NaN where there are fewer than two instructions.
      num_examples: rows that have a value.
      num_missing: rows that have none.
      num_instructions: different instructions among the rows with a value.
    """

    model: str
    metric: str
    mean: float
    standard_error: float
    num_examples: int
    num_missing: int
    num_instructions: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of `model` minus that of `baseline` over the rows where both have a value.

    `standard_error` is that of paired differences, clustered by instruction.
    """

    model: str
    baseline: str
    metric: str
    difference: float
    standard_error: float
    num_examples: int
    num_instructions: int


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """How many rows of a model have one thing to know in their status, in some of its metrics.

    Attributes:
      model, metrics: whose rows, of what.
      flag: as in the status, without a number.
      num_examples: rows that have it, the same number in each of these metrics.
      num_rows: rows of each of these metrics.
    """

    model: str
    metrics: tuple[str, ...]
    flag: str
    num_examples: int
    num_rows: int

    def __str__(self) -> str:
        where = f"{', '.join(self.metrics)} of {self.model}"
        words = _FLAGS.get(self.flag, self.flag.replace("_", " "))
        return f"{where}: in {self.num_examples:,} of {self.num_rows:,} rows {words}"


_FLAGS = {
    "truncated": "the prompt was cut to fit",
    "cut_off": "the response was cut off at the limit",
    "not_finite": "log Pr is not finite",
    "failed": "the metric failed",
    "no_reference": "there is no reference",
    "no_prediction": "there is no prediction",
    "no_answer": "the right answer is not known",
    "no_constraints": "there are no constraints",
    "unchecked": "constraints cannot be checked",
    "tie": "the best candidate is not the only one",
    "special_in_text": "the text spells a special token",
    "history_rewritten": "the template rewrote earlier turns",
    "spans_join": "a token holds the end of the prompt and the start of y",
    "cannot_be_encoded": "the prompt cannot be encoded",
    "cannot_be_used": "the row cannot be used",
}


def clustered_mean(
    values: Float64[np.ndarray, " N"],
    clusters: Shaped[np.ndarray, " N"],
    weights: Float64[np.ndarray, " N"] | None = None,
) -> tuple[float, float, int]:
    r"""A mean, its standard error where values of one cluster go together, and the clusters.

    With residuals \(e_i = w_i (v_i - \bar v) / \sum_j w_j\) summed within each of G clusters,
    \(SE^2 = \frac{G}{G-1} \sum_g (\sum_{i \in g} e_i)^2\) (Liang and Zeger 1986; Miller 2024, arXiv
    2411.00640, without the factor). Where every value is a cluster of its own, this is the standard
    error of a mean, \(s / \sqrt N\).

    Args:
      values: N finite numbers.
      clusters: what each belongs to, of any type that can be sorted.
      weights: of the values; by default all are alike.

    Returns:
      The mean, its standard error (NaN where G < 2), and G.

    >>> mean, se, count = clustered_mean(np.array([1.0, 2.0, 3.0, 4.0]), np.arange(4))
    >>> mean, round(se**2, 6), count  # 5/3 / 4
    (2.5, 0.416667, 4)
    """
    if not len(values):
        return math.nan, math.nan, 0
    given = np.ones(len(values)) if weights is None else weights
    total = given.sum()
    mean = float((given * values).sum() / total)
    _, groups = np.unique(clusters, return_inverse=True)
    sums = np.bincount(groups, weights=given * (values - mean) / total)
    count = len(sums)
    if count < 2:
        return mean, math.nan, count
    return mean, math.sqrt(count / (count - 1) * float((sums**2).sum())), count


def summarize(columns: Mapping[str, np.ndarray]) -> list[Mean]:
    """The mean of each metric and model, metrics outside, in the order of the table.

    Args:
      columns: as `read_evaluation` gives them.
    """
    means = []
    for metric in _unique(columns["metric"]):
        for model in _unique(columns["model"]):
            at = (columns["metric"] == metric) & (columns["model"] == model)
            rows = {name: column[at] for name, column in columns.items()}
            there = ~np.isnan(rows["value"])
            mean, error, count = clustered_mean(
                rows["value"][there], _clusters(rows)[there], _weights(metric, rows, there)
            )
            means.append(
                Mean(
                    model=model,
                    metric=metric,
                    mean=mean,
                    standard_error=error,
                    num_examples=int(there.sum()),
                    num_missing=int((~there).sum()),
                    num_instructions=count,
                )
            )
    return means


def compare_models(columns: Mapping[str, np.ndarray]) -> list[Difference]:
    """Every other model against the first, metric by metric, row by row.

    Args:
      columns: as `read_evaluation` gives them: every model has the same rows in the same order.
    """
    models = _unique(columns["model"])
    found = []
    for metric in _unique(columns["metric"]):
        tables = []
        for model in models:
            at = (columns["metric"] == metric) & (columns["model"] == model)
            tables.append({name: column[at] for name, column in columns.items()})
        first = tables[0]
        for model, other in zip(models[1:], tables[1:], strict=True):
            if not np.array_equal(first["id"], other["id"]):
                raise ValueError(f"{models[0]} and {model} have different rows")
            gaps = other["value"] - first["value"]
            there = ~np.isnan(gaps)
            difference, error, count = clustered_mean(
                gaps[there], _clusters(first)[there], _weights(metric, first, there)
            )
            found.append(
                Difference(
                    model=model,
                    baseline=models[0],
                    metric=metric,
                    difference=difference,
                    standard_error=error,
                    num_examples=int(there.sum()),
                    num_instructions=count,
                )
            )
    return found


def count_flags(columns: Mapping[str, np.ndarray]) -> list[Flagged]:
    """What there is to know of values, or of their absence, and of how many; model by model.

    Args:
      columns: as `read_evaluation` gives them.
    """
    groups: dict[tuple[str, str, int, int], list[str]] = {}
    for model in _unique(columns["model"]):
        for metric in _unique(columns["metric"]):
            at = (columns["metric"] == metric) & (columns["model"] == model)
            counts: Counter[str] = Counter()
            for status in columns["status"][at].tolist():
                counts.update({flag.strip().partition("=")[0] for flag in status.split(",")})
            for flag, count in counts.items():
                if flag not in ("", "ok", "samples"):
                    groups.setdefault((model, flag, count, int(at.sum())), []).append(metric)
    return [
        Flagged(model=model, metrics=tuple(names), flag=flag, num_examples=count, num_rows=rows)
        for (model, flag, count, rows), names in groups.items()
    ]


def _clusters(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a row is clustered by: its instruction; a prompt of ids stands for itself."""
    has_text = rows["instruction_hash"] != ""
    return np.where(has_text, rows["instruction_hash"], rows["input_hash"]).astype(str)


def _weights(metric: str, rows: Mapping[str, np.ndarray], there: np.ndarray) -> np.ndarray | None:
    if not metric.startswith("ifeval_instruction"):
        return None
    return rows["num_references"][there].astype(np.float64)


def _unique(values: np.ndarray) -> list[str]:
    return list(dict.fromkeys(values.tolist()))
