"""Differences of log Pr between two models, or two conditions, on the same tokens of y."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32, Int64

from instructjax.errors import DataError
from instructjax.scoring.result import Scores
from instructjax.scoring.table import read_metadata


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreDifferences:
    r"""\(\log \Pr_a(y) - \log \Pr_b(y)\), nats: positive where `a` finds y likelier.

    Numbers a row come as arrays, numbers a token as lists of arrays.

    Attributes:
      ids: the examples'.
      candidate: index of y among the example's outputs.
      contexts: of `a` and of `b`, in each row.
      token_ids: y's tokens.
      log_prob: the difference of each row.
      token_log_probs: the difference of each token.
      metadata_a, metadata_b: model, prompt rules, arithmetic and versions.
    """

    ids: tuple[str, ...]
    candidate: Int64[np.ndarray, " N"]
    contexts: tuple[tuple[str, str], ...]
    token_ids: list[Int32[np.ndarray, " _"]]
    log_prob: Float64[np.ndarray, " N"]
    token_log_probs: list[Float64[np.ndarray, " _"]]
    metadata_a: Mapping[str, str]
    metadata_b: Mapping[str, str]

    @property
    def log_prob_per_token(self) -> Float64[np.ndarray, " N"]:
        """The difference of each row, nats a token."""
        return self.log_prob / np.array([len(ids) for ids in self.token_ids], np.int64)

    @property
    def mean_per_token(self) -> float:
        """Over all tokens of all rows, nats a token; NaN without rows."""
        tokens = sum(map(len, self.token_ids))
        return math.fsum(self.log_prob) / tokens if tokens else math.nan

    @property
    def largest(self) -> float:
        """The largest difference of a token, either way, nats; 0 without rows."""
        return max((float(np.abs(x).max()) for x in self.token_log_probs), default=0.0)

    def __len__(self) -> int:
        return len(self.ids)


def compare_scores(a: Scores | pa.Table, b: Scores | pa.Table) -> ScoreDifferences:
    """Differences row by row and token by token.

    Rows go together by their order; ids, candidates and tokens of y must be the same. The
    prompts need not be: to see what the input contributes, compare two contexts::

        scores = ij.score(model, examples, contexts="cz,c")
        a, b = (scores.select(lambda row: row.context == name) for name in ("cz", "c"))
        compare_scores(a, b).log_prob

    Args:
      a: from `score`, or a table from `read_scores`.
      b: the same of another model, dtype, layout, context...

    Raises:
      DataError: the rows are not of the same y, token by token; names the first.

    >>> table = pa.table({
    ...     "id": ["q1"], "candidate": [0], "context": ["cz"], "num_bytes": [2],
    ...     "log_prob": [-3.0], "token_ids": [[5, 6]], "token_log_probs": [[-1.0, -2.0]]})
    >>> other = table.set_column(6, "token_log_probs", [[[-1.5, -1.0]]])
    >>> compare_scores(table, other.set_column(4, "log_prob", [[-2.5]])).token_log_probs
    [array([ 0.5, -1. ])]
    """
    if len(a) != len(b):
        raise DataError(
            f"there are {len(a)} rows on one side and {len(b)} on the other",
            remedy="compare scores of the same examples, candidates and number of contexts",
        )
    left, right = _columns(a), _columns(b)
    for row, pair in enumerate(zip(left, right, strict=True)):
        _check_same(*pair, row, _spell(a, row), _spell(b, row))
    return ScoreDifferences(
        ids=tuple(one["id"] for one in left),
        candidate=np.array([one["candidate"] for one in left], np.int64),
        contexts=tuple(
            (one["context"], two["context"]) for one, two in zip(left, right, strict=True)
        ),
        token_ids=[np.array(one["token_ids"], np.int32) for one in left],
        log_prob=np.array(
            [one["log_prob"] - two["log_prob"] for one, two in zip(left, right, strict=True)],
            np.float64,
        ),
        token_log_probs=[
            np.array(one["token_log_probs"], np.float64)
            - np.array(two["token_log_probs"], np.float64)
            for one, two in zip(left, right, strict=True)
        ],
        metadata_a=_metadata(a),
        metadata_b=_metadata(b),
    )


_NAMES = ("id", "candidate", "context", "num_bytes", "log_prob", "token_ids", "token_log_probs")


def _columns(scores: Scores | pa.Table) -> list[dict[str, Any]]:
    table = scores.to_arrow() if isinstance(scores, Scores) else scores
    return table.select(_NAMES).to_pylist()


def _metadata(scores: Scores | pa.Table) -> Mapping[str, str]:
    return scores.metadata if isinstance(scores, Scores) else read_metadata(scores)


def _spell(scores: Scores | pa.Table, row: int) -> bytes | None:
    """The bytes of y where a tokenizer is at hand: equal ids of two tokenizers may differ."""
    if not isinstance(scores, Scores):
        return None
    return scores.tokenizer.join_bytes(scores[row].token_ids)


def _check_same(
    one: Mapping[str, Any],
    two: Mapping[str, Any],
    row: int,
    text: bytes | None,
    other: bytes | None,
) -> None:
    names = ("id", "candidate", "token_ids", "num_bytes")
    different = next((name for name in names if one[name] != two[name]), None)
    if different is None and None not in (text, other) and text != other:
        different = "the text of the tokens"
    if different is not None:
        raise DataError(
            f"the two sides differ in {different}, so they did not score the same y",
            row=f"row {row + 1} ({one['id']!r} and {two['id']!r})",
            remedy="score the same file with models that share a tokenizer",
        )
