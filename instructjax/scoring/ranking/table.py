"""The table of a ranking: one row a (example, candidate)."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from instructjax.scoring.ranking.ranked_example import RankedExample

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
