"""What `rank` returns: the candidates of every example compared, as arrays and as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from instructjax.scoring.ranking.metrics import RankMetrics, RankTotals
from instructjax.scoring.ranking.ranked_example import RankedExample
from instructjax.scoring.ranking.table import RANK_SCHEMA, to_rank_records
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables.table import to_pandas, to_table

if TYPE_CHECKING:
    import pandas

SHOWN_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ranking:
    """Ranked examples in the order of the input.

    A slice, a mask or a list of indices gives a `Ranking`, an index one `RankedExample`.

    Attributes:
      examples: one a row of the input.
      metadata: model, prompt rules, normalization, arithmetic and versions.
    """

    examples: tuple[RankedExample, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The examples' ids; "row N" where an example has none."""
        return [example.id for example in self.examples]

    @cached_property
    def best(self) -> Int64[np.ndarray, " N"]:
        """Index of each example's best candidate; of equals the first."""
        return np.array([example.best for example in self.examples], np.int64)

    @cached_property
    def tie(self) -> Bool[np.ndarray, " N"]:
        """Whether the best score is shared."""
        return np.array([example.tie for example in self.examples], np.bool_)

    @property
    def log_prob(self) -> list[Float64[np.ndarray, " K"]]:
        """log Pr(y | c, z) of each example's candidates, nats."""
        return [example.log_prob for example in self.examples]

    @property
    def score(self) -> list[Float64[np.ndarray, " K"]]:
        """Scores of each example's candidates under the normalization."""
        return [example.score for example in self.examples]

    @property
    def posterior(self) -> list[Float64[np.ndarray, " K"]]:
        """Each example's candidates' shares; they sum to 1."""
        return [example.posterior for example in self.examples]

    @property
    def correct(self) -> list[bool | None]:
        """Whether the best candidate is the right one; None where that is not known."""
        return [example.correct for example in self.examples]

    @cached_property
    def metrics(self) -> RankMetrics:
        """Accuracy, ECE, Brier score and log loss over the examples with a known answer."""
        totals = RankTotals()
        for one in self.examples:
            totals.add(one.log_posterior, best=one.best, tie=one.tie, answer=one.answer)
        return totals.metrics

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[RankedExample]:
        return iter(self.examples)

    @overload
    def __getitem__(self, index: int | np.integer) -> RankedExample: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Ranking: ...
    def __getitem__(self, index: Any) -> RankedExample | Ranking:
        if isinstance(index, int | np.integer):
            return self.examples[index]
        if isinstance(index, slice):
            examples = self.examples[index]
        else:
            places = np.arange(len(self))[np.asarray(index)]
            examples = tuple(self.examples[i] for i in places)
        return Ranking(examples=examples, metadata=self.metadata)

    def to_arrow(self) -> pa.Table:
        """One row a (example, candidate), with the metadata in its schema."""
        records = [record for example in self.examples for record in to_rank_records(example)]
        return to_table(records, self.metadata, RANK_SCHEMA)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the table: .parquet, .jsonl or .csv; see `open_table`."""
        with open_table(path, self.metadata, overwrite=overwrite, schema=RANK_SCHEMA) as write:
            for example in self.examples:
                for record in to_rank_records(example):
                    write(record)

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a data frame; the metadata is in its `attrs`.

        Raises:
          UsageError: pandas is not installed.
        """
        return to_pandas(self.to_arrow())

    def __repr__(self) -> str:
        about = [
            self.metadata[name] for name in ("model", "normalization") if name in self.metadata
        ]
        noun = "example" if len(self) == 1 else "examples"
        lines = [f"Ranking({', '.join([f'{len(self)} {noun}', *about])})"]
        if self.metrics.num_answered:
            lines[0] += f", accuracy {self.metrics.accuracy:.3f}"
        if self.examples:
            lines.append(f"  {'id':<16} {'best':>4} {'share':>6} {'tie':<4} {'correct':<7}")
        for one in self.examples[:SHOWN_EXAMPLES]:
            name = one.id if len(one.id) <= 16 else f"{one.id[:15]}…"
            correct = {None: "", True: "yes", False: "no"}[one.correct]
            lines.append(
                f"  {name:<16} {one.best:>4} {one.posterior[one.best]:>6.3f} "
                f"{'yes' if one.tie else 'no':<4} {correct:<7}".rstrip()
            )
        if len(self) > SHOWN_EXAMPLES:
            lines.append(f"  … and {len(self) - SHOWN_EXAMPLES} more")
        return "\n".join(lines)
