"""What `sample` returns: texts, numbers as arrays, a table, and a coloured display in notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from instructjax.display.tokens import render_html
from instructjax.sampling.rows import SampledRow
from instructjax.sampling.table import SAMPLE_SCHEMA, to_sample_record
from instructjax.scoring.tables.result_rows import ResultRows


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Samples(ResultRows[SampledRow]):
    """Responses y ~ Pr(. | c, z): by example, within it by sample.

    Numbers come as numpy arrays with a value a row; what has a value a token comes as a list with
    an array a row. A slice, a mask or a list of indices gives `Samples`, an index one `SampledRow`.

    Attributes:
      rows: one a (example, sample).
      tokenizer: turns ids into text.
      metadata: model, prompt rules, rules of the draws, arithmetic and versions.
    """

    _schema = SAMPLE_SCHEMA

    @property
    def text(self) -> list[str]:
        """The responses, without the token or string that ended them."""
        return [row.text for row in self.rows]

    @cached_property
    def sample(self) -> Int64[np.ndarray, " N"]:
        """Number of each response among those to its example."""
        return np.array([row.sample for row in self.rows], np.int64)

    @property
    def token_ids(self) -> list[Int32[np.ndarray, " n"]]:
        """Ids drawn, the stop token included."""
        return [row.token_ids for row in self.rows]

    @property
    def token_log_probs(self) -> list[Float32[np.ndarray, " n"]]:
        """Nats of each token under the model."""
        return [row.token_log_probs for row in self.rows]

    @property
    def sampling_log_probs(self) -> list[Float32[np.ndarray, " n"]]:
        """Nats of each token under the distribution that it was drawn from."""
        return [row.sampling_log_probs for row in self.rows]

    @cached_property
    def log_prob(self) -> Float64[np.ndarray, " N"]:
        """log Pr(y | c, z) under the model, nats, summed over tokens in float64."""
        return np.array([row.log_prob for row in self.rows], np.float64)

    @cached_property
    def sampling_log_prob(self) -> Float64[np.ndarray, " N"]:
        """The same under the distribution that y was drawn from."""
        return np.array([row.sampling_log_prob for row in self.rows], np.float64)

    @cached_property
    def num_tokens(self) -> Int64[np.ndarray, " N"]:
        """Tokens drawn, the stop token included."""
        return np.array([row.num_tokens for row in self.rows], np.int64)

    @property
    def finish_reason(self) -> list[str]:
        """ "stop_token", "stop_string" or "length"."""
        return [row.finish_reason for row in self.rows]

    def _record(self, row: SampledRow) -> Mapping[str, Any]:
        return to_sample_record(row)

    def _describe(self, row: SampledRow) -> str:
        text = " ".join(row.text.split())
        text = text if len(text) <= 60 else f"{text[:59]}…"
        return (
            f"{row.id} #{row.sample}: {text!r} "
            f"({row.log_prob:.3f} nats, {row.num_tokens} tokens, {row.finish_reason})"
        )

    def _show(self, row: SampledRow) -> tuple[str, str]:
        status = "" if row.status == "ok" else f" · {row.status}"
        head = (
            f"{row.id} · sample {row.sample} · log Pr {row.log_prob:.3f} nats · "
            f"{row.num_tokens} tokens · {row.finish_reason}{status}"
        )
        return head, render_html(self.tokenizer.pieces(row.token_ids), row.token_log_probs)
