"""What `score` returns: numbers as arrays, a table, and a coloured display in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64

from instructjax.display.tokens import render_html
from instructjax.scoring.rows import ScoredRow
from instructjax.scoring.tables.result_rows import ResultRows
from instructjax.scoring.tables.table import SCHEMA, to_record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scores(ResultRows[ScoredRow]):
    """log Pr(y | c, z) of every example, candidate and context, in this order.

    Numbers come as numpy arrays with a value a row; what has a value a token comes as a list with
    an array a row. A slice, a mask or a list of indices gives `Scores`, an index one `ScoredRow`.

    Attributes:
      rows: one a (example, candidate, context).
      tokenizer: turns ids into text.
      metadata: model, prompt rules, arithmetic and versions.
    """

    _schema = SCHEMA

    def _column(self, name: str, dtype: Any) -> np.ndarray:
        return np.array([getattr(row, name) for row in self.rows], dtype)

    def _tokenwise(self, name: str) -> list[np.ndarray]:
        return [getattr(row.scored, name) for row in self.rows]

    @cached_property
    def log_prob(self) -> Float64[np.ndarray, " N"]:
        """log Pr(y | c, z), nats, summed over y's tokens in float64."""
        return self._column("log_prob", np.float64)

    @cached_property
    def num_tokens(self) -> Int64[np.ndarray, " N"]:
        """Scored tokens, the end-of-turn token included where it is scored."""
        return self._column("num_tokens", np.int64)

    @cached_property
    def num_bytes(self) -> Int64[np.ndarray, " N"]:
        """UTF-8 bytes of y; the end-of-turn token has none."""
        return self._column("num_bytes", np.int64)

    @cached_property
    def log_prob_per_token(self) -> Float64[np.ndarray, " N"]:
        """Nats a token."""
        return self._column("log_prob_per_token", np.float64)

    @cached_property
    def bits_per_byte(self) -> Float64[np.ndarray, " N"]:
        """-log Pr / (ln 2 x bytes of y); NaN where y has no bytes.

        The end-of-turn token's nats count although it has no bytes.
        """
        return self._column("bits_per_byte", np.float64)

    @cached_property
    def greedy(self) -> Bool[np.ndarray, " N"]:
        """Whether greedy decoding gives y: every token is the likeliest."""
        return self._column("greedy", np.bool_)

    @property
    def token_log_probs(self) -> list[Float[np.ndarray, " n"]]:
        """float32, nats."""
        return self._tokenwise("token_log_probs")

    @property
    def surprisal_bits(self) -> list[Float[np.ndarray, " n"]]:
        """-log2 p of each token, bits."""
        return [-log_probs / np.float32(np.log(2)) for log_probs in self.token_log_probs]

    @property
    def token_ids(self) -> list[Int32[np.ndarray, " n"]]:
        """Ids of the scored tokens."""
        return [row.token_ids for row in self.rows]

    @property
    def tokens(self) -> list[list[str]]:
        """The scored tokens as text, to display; `tokenizer.decode` gives a whole text."""
        return [self.tokenizer.pieces(row.token_ids) for row in self.rows]

    @property
    def token_greedy(self) -> list[Bool[np.ndarray, " n"]]:
        """Whether each token is the likeliest (of equals, the lowest id)."""
        return self._tokenwise("greedy")

    @property
    def entropy(self) -> list[Float[np.ndarray, " n"]]:
        """Of the distribution that each token was drawn from, nats."""
        return self._tokenwise("entropy")

    @property
    def rank(self) -> list[Int[np.ndarray, " n"]]:
        """1 + how many tokens the model likes better."""
        return self._tokenwise("rank")

    @property
    def top_ids(self) -> list[Int[np.ndarray, "n k"]]:
        """The `top_k` likeliest tokens in each token's place, best first."""
        return self._tokenwise("top_ids")

    @property
    def top_log_probs(self) -> list[Float[np.ndarray, "n k"]]:
        """Their log-probabilities, nats."""
        return self._tokenwise("top_log_probs")

    @cached_property
    def candidate(self) -> Int64[np.ndarray, " N"]:
        """Index of y among the example's outputs."""
        return self._column("candidate", np.int64)

    @property
    def context(self) -> list[str]:
        """What the prompt holds: "cz", "c", "z" or "none"."""
        return [row.context for row in self.rows]

    @property
    def instruction_id(self) -> list[str | None]:
        return [row.instruction_id for row in self.rows]

    @property
    def input_id(self) -> list[str | None]:
        return [row.input_id for row in self.rows]

    @property
    def task(self) -> list[str | None]:
        return [row.task for row in self.rows]

    def select(self, keep: Callable[[ScoredRow], bool]) -> Scores:
        """The rows for which `keep` is true, such as `lambda row: row.context == "cz"`."""
        return self[[i for i, row in enumerate(self.rows) if keep(row)]]

    def _record(self, row: ScoredRow) -> Mapping[str, Any]:
        return to_record(row)

    def _columns(self) -> str:
        return (
            f"{'id':<16} {'cand':>4} {'ctx':<4} {'log_prob':>10} {'tokens':>6} "
            f"{'a token':>8} {'greedy':<6} status"
        )

    def _describe(self, row: ScoredRow) -> str:
        name = row.id if len(row.id) <= 16 else f"{row.id[:15]}…"
        return (
            f"{name:<16} {row.candidate:>4} {row.context:<4} {row.log_prob:>10.3f} "
            f"{row.num_tokens:>6} {row.log_prob_per_token:>8.3f} "
            f"{'yes' if row.greedy else 'no':<6} {row.status}"
        )

    def _show(self, row: ScoredRow) -> tuple[str, str]:
        status = "" if row.status == "ok" else f" · {row.status}"
        head = (
            f"{row.id} · candidate {row.candidate} · {row.context} · "
            f"log Pr {row.log_prob:.3f} nats · {row.num_tokens} tokens{status}"
        )
        pieces = self.tokenizer.pieces(row.token_ids)
        return head, render_html(pieces, row.token_log_probs, row.scored.rank)
