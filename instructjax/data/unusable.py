"""A row that was read and cannot be used further on, as a reject."""

from __future__ import annotations

import json
from dataclasses import asdict

from instructjax.data.example import Example
from instructjax.data.rejects import Reject, shorten_raw
from instructjax.errors import InstructJaxError, PromptError


def make_reject(example: Example, error: InstructJaxError) -> Reject:
    """A row that was read and cannot be used, with the place that it was read from."""
    file, place = example.place or ("", example.id or "")
    kind = "cannot be encoded" if isinstance(error, PromptError) else "cannot be used"
    remedy = f"; {error.remedy}" if error.remedy else ""
    names = ("id", "task", "system", "history", "instruction", "input", "output")
    given = {name: getattr(example, name) for name in (*names, "prompt_ids", "output_ids")}
    given["history"] = [asdict(turn) for turn in example.turns]
    values = {name: value for name, value in given.items() if value is not None and len(value)}
    if example.answer is not None:
        values["answer"] = example.answer
    values |= {name: value for name, value in example.extra.items() if name not in values}
    return Reject(
        file=file,
        row=place,
        reason=f"{kind}: {error.message}{remedy}",
        raw=shorten_raw(json.dumps(values, ensure_ascii=False, default=str)),
    )
