"""What `sample` returns: texts, numbers as arrays, a table, and a coloured display in notebooks."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int32, Int64

from instructjax.display.tokens import render_html, render_legend_html
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.sampling.rows import SampledRow
from instructjax.sampling.table import SAMPLE_SCHEMA, to_sample_record
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables.table import to_pandas, to_table

if TYPE_CHECKING:
    import pandas

SHOWN_ROWS = 10


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Samples:
    """Responses y ~ Pr(. | c, z): by example, within it by sample.

    Numbers come as numpy arrays with a value a row; what has a value a token comes as a list with
    an array a row. A slice, a mask or a list of indices gives `Samples`, an index one `SampledRow`.

    Attributes:
      rows: one a (example, sample).
      tokenizer: turns ids into text.
      metadata: model, prompt rules, rules of the draws, arithmetic and versions.
    """

    rows: tuple[SampledRow, ...]
    tokenizer: Tokenizer
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> list[str]:
        """The responses, without the token or string that ended them."""
        return [row.text for row in self.rows]

    @property
    def ids(self) -> list[str]:
        """The examples' ids; "row N" where an example has none."""
        return [row.id for row in self.rows]

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

    @property
    def status(self) -> list[str]:
        """ "ok", or flags of the prompt joined by commas."""
        return [row.status for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SampledRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> SampledRow: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Samples: ...
    def __getitem__(self, index: Any) -> SampledRow | Samples:
        if isinstance(index, int | np.integer):
            return self.rows[index]
        if isinstance(index, slice):
            rows = self.rows[index]
        else:
            rows = tuple(self.rows[i] for i in np.arange(len(self))[np.asarray(index)])
        return Samples(rows=rows, tokenizer=self.tokenizer, metadata=self.metadata)

    def to_arrow(self) -> pa.Table:
        """The table of samples, with the metadata in its schema."""
        return to_table(map(to_sample_record, self.rows), self.metadata, SAMPLE_SCHEMA)

    def to_pandas(self) -> pandas.DataFrame:
        """The table of samples as a data frame; the metadata is in its `attrs`.

        Raises:
          UsageError: pandas is not installed.
        """
        return to_pandas(self.to_arrow())

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the table: .parquet, .jsonl or .csv; see `open_table`."""
        with open_table(path, self.metadata, overwrite=overwrite, schema=SAMPLE_SCHEMA) as write:
            for row in self.rows:
                write(to_sample_record(row))

    def __repr__(self) -> str:
        noun = "row" if len(self) == 1 else "rows"
        about = [self.metadata[name] for name in ("model", "layout") if name in self.metadata]
        lines = [f"Samples({', '.join([f'{len(self)} {noun}', *about])})"]
        for row in self.rows[:SHOWN_ROWS]:
            text = " ".join(row.text.split())
            text = text if len(text) <= 60 else f"{text[:59]}…"
            lines.append(
                f"  {row.id} #{row.sample}: {text!r} "
                f"({row.log_prob:.3f} nats, {row.num_tokens} tokens, {row.finish_reason})"
            )
        if len(self) > SHOWN_ROWS:
            lines.append(f"  … and {len(self) - SHOWN_ROWS} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [render_legend_html()]
        for row in self.rows[:SHOWN_ROWS]:
            status = "" if row.status == "ok" else f" · {row.status}"
            head = (
                f"{row.id} · sample {row.sample} · log Pr {row.log_prob:.3f} nats · "
                f"{row.num_tokens} tokens · {row.finish_reason}{status}"
            )
            tokens = render_html(self.tokenizer.pieces(row.token_ids), row.token_log_probs)
            parts.append(
                f'<div style="margin:0.6em 0 0.2em;opacity:0.75">{html.escape(head)}</div>{tokens}'
            )
        if len(self) > SHOWN_ROWS:
            parts.append(
                f'<div style="margin-top:0.6em;opacity:0.75">… and {len(self) - SHOWN_ROWS} more '
                "rows: index them to see them</div>"
            )
        return f'<div style="max-width:60em">{"".join(parts)}</div>'
