"""Differences of log Pr between two models, or two conditions, on the same tokens of y."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int32, Int64

from instructjax.errors import DataError
from instructjax.scoring.result import Scores
from instructjax.scoring.tables.table import read_metadata


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        models = " - ".join(about.get("model", "?") for about in (self.metadata_a, self.metadata_b))
        mean, largest = f"{self.mean_per_token:+.4f} nats a token", f"{self.largest:.4f}"
        return f"ScoreDifferences({len(self)} rows, {models}: {mean}, at most {largest} either way)"


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
      DataError: the rows are not of the same y, token by token (names the first), or a table is
        of another vocabulary.

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
    left, right = _to_arrow(a), _to_arrow(b)
    _check_same(left, right)
    if isinstance(a, Scores) and isinstance(b, Scores):
        _check_same_text(a, b)
    else:
        _check_same_vocabulary(_metadata(a), _metadata(b))
    tokens, stops = _flatten(left, "token_ids")
    differences = _flatten(left, "token_log_probs")[0].astype(np.float64)
    differences -= _flatten(right, "token_log_probs")[0]
    contexts = (side.column("context").to_pylist() for side in (left, right))
    return ScoreDifferences(
        ids=tuple(left.column("id").to_pylist()),
        candidate=left.column("candidate").to_numpy().astype(np.int64),
        contexts=tuple(zip(*contexts, strict=True)),
        token_ids=_split(tokens.astype(np.int32), stops),
        log_prob=left.column("log_prob").to_numpy() - right.column("log_prob").to_numpy(),
        token_log_probs=_split(differences, stops),
        metadata_a=_metadata(a),
        metadata_b=_metadata(b),
    )


_NAMES = ("id", "candidate", "context", "num_bytes", "log_prob", "token_ids", "token_log_probs")
_SAME = ("id", "candidate", "token_ids", "num_bytes")


def _to_arrow(scores: Scores | pa.Table) -> pa.Table:
    table = scores.to_arrow() if isinstance(scores, Scores) else scores
    return table.select(_NAMES)


def _metadata(scores: Scores | pa.Table) -> Mapping[str, str]:
    return scores.metadata if isinstance(scores, Scores) else read_metadata(scores)


def _flatten(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All values of a column of lists, and where each list ends among them."""
    lists = table.column(name).combine_chunks()
    return lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())


def _split(values: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
    return np.split(values, stops[:-1]) if len(stops) else []


def _check_same(left: pa.Table, right: pa.Table) -> None:
    if all(left.column(name).equals(right.column(name)) for name in _SAME):
        return
    for row in range(len(left)):
        one, two = (side.select(_SAME).slice(row, 1).to_pylist()[0] for side in (left, right))
        different = next((name for name in _SAME if one[name] != two[name]), None)
        if different is not None:
            raise _not_the_same(different, row, one["id"], two["id"])


def _check_same_text(a: Scores, b: Scores) -> None:
    """Equal ids of two tokenizers may differ."""
    if a.tokenizer.fingerprint == b.tokenizer.fingerprint:
        return
    for row, ids in enumerate(a.token_ids):
        if a.tokenizer.join_bytes(ids) != b.tokenizer.join_bytes(ids):
            raise _not_the_same("the text of the tokens", row, a.ids[row], b.ids[row])


def _check_same_vocabulary(a: Mapping[str, str], b: Mapping[str, str]) -> None:
    """Tables hold ids without text, and say what the ids stood for unless they are of others."""
    known = [side.get("vocabulary_fingerprint") for side in (a, b)]
    if None not in known and known[0] != known[1]:
        raise DataError(
            f"the scores of {a.get('model', '?')} and of {b.get('model', '?')} are of two "
            "vocabularies, in which equal ids may be different text",
            remedy="score both in one session: what `score` returns is compared by its text",
        )


def _not_the_same(what: str, row: int, one: str, two: str) -> DataError:
    return DataError(
        f"the two sides differ in {what}, so they did not score the same y",
        row=f"row {row + 1} ({one!r} and {two!r})",
        remedy="score the same file with models that share a tokenizer",
    )
