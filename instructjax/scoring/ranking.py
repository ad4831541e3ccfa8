"""What `rank` returns: the candidates of every example compared, as arrays and as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from instructjax.errors import UsageError
from instructjax.scoring.calibration import RankMetrics, RankTotals
from instructjax.scoring.normalize import find_ties, log_posterior, order_candidates
from instructjax.scoring.table import to_table
from instructjax.scoring.table_files import open_table

if TYPE_CHECKING:
    import pandas

SHOWN_EXAMPLES = 10

RANK_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("instruction_id", pa.string()),
        pa.field("input_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("log_prob", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_characters", pa.int64(), nullable=False),
        pa.field("greedy", pa.bool_(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("posterior", pa.float64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("is_best", pa.bool_(), nullable=False),
        pa.field("tie", pa.bool_(), nullable=False),
        pa.field("correct", pa.bool_()),
        pa.field("status", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RankedExample:
    """The K candidates of one example, compared. Arrays run over the candidates in their order.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      instruction_id, input_id, task: the example's.
      log_prob: log Pr(y | c, z), nats.
      num_tokens, num_bytes, num_characters: of y; the end-of-turn token is a token of no bytes.
      greedy: whether greedy decoding gives y; of candidates at most one.
      score: `log_prob` under the normalization asked for.
      answer: index of the right candidate, if it is known.
      status: "ok", or flags joined by commas; see `ScoredRow.status`.
    """

    id: str
    instruction_id: str | None = None
    input_id: str | None = None
    task: str | None = None
    log_prob: Float64[np.ndarray, " K"]
    num_tokens: Int64[np.ndarray, " K"]
    num_bytes: Int64[np.ndarray, " K"]
    num_characters: Int64[np.ndarray, " K"]
    greedy: Bool[np.ndarray, " K"]
    score: Float64[np.ndarray, " K"]
    answer: int | None = None
    status: tuple[str, ...] = ()

    @cached_property
    def log_posterior(self) -> Float64[np.ndarray, " K"]:
        """Log-softmax of the scores, nats; see `log_posterior`."""
        with np.errstate(invalid="ignore"):  # where the model gave no number, so does this
            return np.asarray(log_posterior(self.score))

    @property
    def posterior(self) -> Float64[np.ndarray, " K"]:
        """Softmax of the scores: each candidate's share."""
        return np.exp(self.log_posterior)

    @cached_property
    def rank(self) -> Int64[np.ndarray, " K"]:
        """1 for the best; of equal scores the first candidate comes first."""
        return np.asarray(order_candidates(self.score))

    @property
    def best(self) -> int:
        """Index of the best candidate; of equals the first."""
        return int(self.rank.argmin())

    @cached_property
    def ties(self) -> Bool[np.ndarray, " K"]:
        """Which candidates share the best score with another."""
        return np.asarray(find_ties(self.score))

    @property
    def tie(self) -> bool:
        """Whether the best score is shared."""
        return bool(self.ties.any())

    @property
    def correct(self) -> bool | None:
        """Whether the best candidate is the right one; None where that is not known."""
        return None if self.answer is None else self.best == self.answer

    def __len__(self) -> int:
        return len(self.log_prob)

    def __repr__(self) -> str:
        return (
            f"RankedExample(id={self.id!r}, best={self.best}, "
            f"posterior={self.posterior.round(3).tolist()}, tie={self.tie}, correct={self.correct})"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ranking:
    """Ranked examples in the order of the input.

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

    def __getitem__(self, index: int) -> RankedExample:
        return self.examples[index]

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
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise UsageError(
                "pandas is not installed", remedy="run `pip install pandas`, or use to_arrow()"
            ) from None
        frame = self.to_arrow().to_pandas()
        frame.attrs.update(self.metadata)
        return frame

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


def to_rank_records(example: RankedExample) -> list[dict[str, Any]]:
    """The rows of the table for one example, as Python values.

    `correct` says whether the candidate is the right one, so that the accuracy is the mean of
    `correct` over the rows where `is_best`; None where the right one is not known.
    """
    best, shares = example.best, example.posterior
    return [
        {
            "id": example.id,
            "candidate": k,
            "instruction_id": example.instruction_id,
            "input_id": example.input_id,
            "task": example.task,
            "log_prob": float(example.log_prob[k]),
            "num_tokens": int(example.num_tokens[k]),
            "num_bytes": int(example.num_bytes[k]),
            "num_characters": int(example.num_characters[k]),
            "greedy": bool(example.greedy[k]),
            "score": float(example.score[k]),
            "posterior": float(shares[k]),
            "rank": int(example.rank[k]),
            "is_best": k == best,
            "tie": bool(example.ties[k]),
            "correct": None if example.answer is None else k == example.answer,
            "status": example.status[k],
        }
        for k in range(len(example))
    ]
