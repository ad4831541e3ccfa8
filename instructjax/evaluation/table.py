"""The evaluation table: one row a (model, example, metric), that every later analysis reads.

| column | what it holds |
| --- | --- |
| `model` | name of the model; all rows of a model stand together |
| `id` | the example's; "row N" with N counted from 1 where it has none |
| `metric` | name of the metric, such as `log_prob` or `rouge_l` |
| `value` | P(c, z, y); null (NaN in numpy) where there is none, and `status` says why |
| `instruction_id`, `input_id`, `task`, `category` | names of the data row, null where it has none |
| `cell` | the data row's, such as `seen_c_seen_z`; null where it has none |
| `instruction_hash`, `input_hash` | what identifies c and z: `text_hash` of their texts |
| `num_references` | y that the value is the best over; for `ifeval_*`, constraints checked |
| `prediction` | what the model wrote, in rows of metrics of text, if predictions are kept |
| `status` | "ok", or flags joined by commas; see below |

Every model has the same examples in the same order, and every example every metric, so the rows of
two models pair by place as well as by (`id`, `metric`). Hashes and not names identify c and z: the
names may be missing, or differ for one text. Where a prompt is given as token ids,
`instruction_hash` is null and `input_hash` stands for the whole prompt.

Flags of a value, or of why there is none:

| flag | what it says |
| --- | --- |
| `truncated=N` | N tokens of the prompt were cut; for others see `PromptEncoder.encode` |
| `cut_off` | the response ended at the limit of tokens, not by itself; of several, `cut_off=N` |
| `not_finite` | log Pr of y, or of the text that the model wrote, is not finite: no value |
| `failed=ERROR` | the metric raised this, or (`failed`) returned no finite number: no value |
| `no_reference`, `no_prediction`, `no_answer`, `no_constraints` | of what there is none |
| `unchecked=KIND` | a constraint of this kind is not checked |
| `samples=N`, `tie` | the mean of N texts; two candidates are equally good |
| `cannot_be_encoded`, `cannot_be_used` | the row gives nothing for this model |

Units: `log_prob` nats, `log_prob_per_token` nats a token, all other metrics 0 to 1, except `chrf`,
0 to 100 as sacrebleu gives it, and a user's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instructjax.errors import DataError
from instructjax.scoring.tables.reading import read_table

EVALUATION_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("instruction_id", pa.string()),
        pa.field("input_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("category", pa.string()),
        pa.field("cell", pa.string()),
        pa.field("instruction_hash", pa.string()),
        pa.field("input_hash", pa.string()),
        pa.field("num_references", pa.int32(), nullable=False),
        pa.field("prediction", pa.string()),
        pa.field("status", pa.string(), nullable=False),
    ]
)
_NEEDED = ("model", "id", "metric", "value")
_REMEDY = "give a table as `instructjax evaluate` writes it"


def read_evaluation(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of an evaluation table as numpy arrays of one length.

    `value` is float64 with NaN where there is none, `num_references` int32. The others are object
    arrays of texts with "" where there is none, so that `np.unique` can group by them; in
    `prediction` it is None.

    Args:
      path: a .parquet, .jsonl or .csv file that `instructjax evaluate` or `Evaluation.save` wrote.

    Raises:
      UsageError: no such file, or another suffix.
      DataError: it is no evaluation table, or it is damaged.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "results.csv"
    >>> row = {name: "" for name in EVALUATION_SCHEMA.names}
    >>> row |= {"model": "tiny", "id": "a", "metric": "f1", "value": "0.5", "num_references": "1"}
    >>> _ = file.write_text(",".join(row) + "\\n" + ",".join(row.values()) + "\\n")
    >>> read_evaluation(file)["value"]
    array([0.5])
    """
    return to_columns(read_evaluation_table(path))


def read_evaluation_table(path: str | os.PathLike[str]) -> pa.Table:
    """The same as an arrow table, with its metadata.

    Tables of other tools need no more than `model`, `id`, `metric` and `value`: other columns are
    null where they are missing, `num_references` is then 0 and `status` "".

    Raises:
      UsageError, DataError: as `read_evaluation`.
    """
    path, place = Path(path), count(1)

    def restore(record: Mapping[str, Any]) -> dict[str, Any]:
        row, values = f"row {next(place)}", dict(record)
        for field in EVALUATION_SCHEMA:
            value, is_text = values[field.name], pa.types.is_string(field.type)
            if isinstance(value, int) and not isinstance(value, bool) and is_text:
                values[field.name] = str(value)  # as an id may be
            elif not isinstance(value, None | str if is_text else None | int | float):
                raise DataError(
                    f"{field.name} is {value!r:.80}", file=path, row=row, remedy=_REMEDY
                )
        return values

    lenient = pa.schema([field.with_nullable(True) for field in EVALUATION_SCHEMA])
    optional = [name for name in EVALUATION_SCHEMA.names if name not in _NEEDED]
    table = read_table(path, lenient, optional=optional, verb="evaluate", restore=restore)
    for name in _NEEDED[:3]:
        missing = table.column(name).is_null().to_numpy()
        if missing.any():
            row = f"row {int(missing.argmax()) + 1}"
            raise DataError(f"there is no {name}", file=path, row=row, remedy=_REMEDY)
    for name, value in (("num_references", 0), ("status", "")):
        column = table.column(name).fill_null(value)
        table = table.set_column(table.column_names.index(name), name, column)
    return table.cast(EVALUATION_SCHEMA.with_metadata(table.schema.metadata))


def to_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """The same of a table in memory; see `read_evaluation`."""
    columns = {}
    for field in EVALUATION_SCHEMA:
        values = table.column(field.name).to_pylist()
        if field.name == "value":
            columns[field.name] = np.array(values, np.float64)  # None becomes NaN
        elif field.name == "num_references":
            columns[field.name] = np.array(values, np.int32)
        else:
            column = np.empty(len(values), object)
            column[:] = values if field.name == "prediction" else [x or "" for x in values]
            columns[field.name] = column
    return columns
