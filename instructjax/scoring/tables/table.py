"""The score table: one row a (example, candidate, context)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from instructjax.errors import UsageError
from instructjax.scoring.rows import ScoredRow

if TYPE_CHECKING:
    import pandas

METADATA_KEY = b"instructjax"

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("instruction_id", pa.string()),
        pa.field("input_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("log_prob", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("log_prob_per_token", pa.float64(), nullable=False),
        pa.field("bits_per_byte", pa.float64()),
        pa.field("greedy", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("token_log_probs", pa.list_(pa.float32()), nullable=False),
    ]
)

# What `top_k` adds; the best tokens of all places stand one place after the other.
DETAILS = (
    pa.field("token_entropies", pa.list_(pa.float32()), nullable=False),
    pa.field("token_ranks", pa.list_(pa.int32()), nullable=False),
    pa.field("top_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("top_log_probs", pa.list_(pa.float32()), nullable=False),
)


def schema_with(metadata: Mapping[str, str], schema: pa.Schema = SCHEMA) -> pa.Schema:
    """A table's schema with the run's metadata, as JSON under the key `instructjax`."""
    return schema.with_metadata({METADATA_KEY: json.dumps(dict(metadata)).encode()})


def read_metadata(table: pa.Table | pa.Schema) -> dict[str, str]:
    """The run's metadata that a table carries; empty where it carries none.

    >>> read_metadata(schema_with({"model": "tiny"}))
    {'model': 'tiny'}
    """
    schema = table.schema if isinstance(table, pa.Table) else table
    return json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))


def to_record(row: ScoredRow, *, details: bool = False) -> dict[str, Any]:
    """One row of the table as Python values; `bits_per_byte` is None where y has no bytes.

    Args:
      row: what was scored.
      details: with the columns of `DETAILS`.
    """
    bits = row.bits_per_byte
    record = {
        "id": row.id,
        "candidate": row.candidate,
        "context": row.context,
        "instruction_id": row.instruction_id,
        "input_id": row.input_id,
        "task": row.task,
        "log_prob": row.log_prob,
        "num_tokens": row.num_tokens,
        "num_bytes": row.num_bytes,
        "log_prob_per_token": row.log_prob_per_token,
        "bits_per_byte": bits if row.num_bytes else None,
        "greedy": row.greedy,
        "status": row.status,
        "token_ids": row.token_ids.tolist(),
        "token_log_probs": _shortest(row.token_log_probs),
    }
    if details:
        scored = row.scored
        record |= {
            "token_entropies": _shortest(scored.entropy),
            "token_ranks": scored.rank.tolist(),
            "top_ids": scored.top_ids.ravel().tolist(),
            "top_log_probs": _shortest(scored.top_log_probs.ravel()),
        }
    return record


def _shortest(values: Float32[np.ndarray, " n"]) -> list[float]:
    """The shortest decimals that give the same float32 back."""
    return [float(str(x)) for x in values]


def to_table(
    records: Iterable[Mapping[str, Any]],
    metadata: Mapping[str, str],
    schema: pa.Schema = SCHEMA,
) -> pa.Table:
    """The records as one arrow table."""
    return pa.Table.from_pylist(list(records), schema=schema_with(metadata, schema))


def to_json_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the numbers that JSON does not know: NaN and infinities become null."""
    return {
        name: [_finite(x) for x in value] if isinstance(value, list) else _finite(value)
        for name, value in record.items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_pandas(table: pa.Table) -> pandas.DataFrame:
    """A table as a data frame, its metadata in `attrs`.

    Raises:
      UsageError: pandas is not installed.
    """
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise UsageError(
            "pandas is not installed", remedy="run `pip install pandas`, or use to_arrow()"
        ) from None
    frame = table.to_pandas()
    frame.attrs.update(read_metadata(table))
    return frame
