"""What `evaluate` returns: the evaluation table, and what it comes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from instructjax.evaluation.summary import (
    Difference,
    Flagged,
    Mean,
    compare_models,
    count_flags,
    summarize,
)
from instructjax.evaluation.table import EVALUATION_SCHEMA, to_columns
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables.table import read_metadata, to_pandas

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation:
    """One row a (model, example, metric); see `instructjax.evaluation.table` for the columns.

    Attributes:
      table: the rows, with the metadata of the run in the schema.
    """

    table: pa.Table

    @property
    def metadata(self) -> Mapping[str, str]:
        """Models, metrics, prompt rules, arithmetic and versions."""
        return read_metadata(self.table)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns as numpy arrays; see `read_evaluation`."""
        return to_columns(self.table)

    @cached_property
    def means(self) -> list[Mean]:
        """The mean of each metric and model, its standard error clustered by instruction."""
        return summarize(self.columns)

    @cached_property
    def differences(self) -> list[Difference]:
        """Every other model against the first, paired row by row."""
        return compare_models(self.columns)

    @cached_property
    def flagged(self) -> list[Flagged]:
        """What there is to know of values, such as text cut off at the limit, and of how many."""
        return count_flags(self.columns)

    def mean(self, metric: str, model: str | None = None) -> float:
        """The mean of a metric, of the first model if none is named.

        Raises:
          KeyError: there is no such metric or model.
        """
        for one in self.means:
            if one.metric == metric and model in (None, one.model):
                return one.mean
        raise KeyError(metric if model is None else (metric, model))

    def __len__(self) -> int:
        return self.table.num_rows

    def to_arrow(self) -> pa.Table:
        """The table."""
        return self.table

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a data frame; the metadata is in its `attrs`.

        Raises:
          UsageError: pandas is not installed.
        """
        return to_pandas(self.table)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the table: .parquet, .jsonl or .csv; `read_evaluation` reads it."""
        with open_table(
            path, self.metadata, overwrite=overwrite, schema=EVALUATION_SCHEMA
        ) as write:
            for record in self.table.to_pylist():
                write(record)

    def __repr__(self) -> str:
        lines = [f"Evaluation({len(self)} rows)"]
        lines += [
            f"  {one.model:<24.24} {one.metric:<26.26} {one.mean:>10.4f}  n={one.num_examples}"
            for one in self.means
        ]
        lines += [
            f"  {one.model:.20} - {one.baseline:.20} {one.metric}: {one.difference:+.4f} "
            f"(SE {one.standard_error:.4f})"
            for one in self.differences
        ]
        lines += [f"  {one}" for one in self.flagged]
        return "\n".join(lines)
