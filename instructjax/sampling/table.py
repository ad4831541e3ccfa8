"""The table of samples: one row a (example, sample). It is itself a data file of responses.

Numbers that are not finite are null, and the row's status says so.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from instructjax.sampling.rows import SampledRow

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("instruction_id", pa.string()),
        pa.field("input_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("instruction", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("log_prob", pa.float64()),
        pa.field("sampling_log_prob", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("token_log_probs", pa.list_(pa.float32()), nullable=False),
        pa.field("token_sampling_log_probs", pa.list_(pa.float32()), nullable=False),
    ]
)


def to_sample_record(row: SampledRow) -> dict[str, Any]:
    """One row of the table as Python values."""
    example = row.example
    return {
        "id": row.id,
        "sample": row.sample,
        "instruction_id": example.instruction_id,
        "input_id": example.input_id,
        "task": example.task,
        "instruction": example.instruction,
        "input": example.input,
        "output": row.text,
        "finish_reason": row.finish_reason,
        "num_tokens": row.num_tokens,
        "log_prob": _finite(row.log_prob),
        "sampling_log_prob": _finite(row.sampling_log_prob),
        "status": row.status,
        "token_ids": row.token_ids.tolist(),
        # The shortest decimals that give the same float32 back.
        "token_log_probs": [_finite(float(str(x))) for x in row.token_log_probs],
        "token_sampling_log_probs": [_finite(float(str(x))) for x in row.sampling_log_probs],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
