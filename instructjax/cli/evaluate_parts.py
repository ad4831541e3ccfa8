"""What a part of an evaluation says of its rows, and which parts are to be measured again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from instructjax.data import Reject
from instructjax.data.unusable import make_reject
from instructjax.evaluation.stream import EvaluatedChunk
from instructjax.evaluation.written import Written
from instructjax.scoring.runs.chunks import Failure
from instructjax.scoring.runs.parts import Parts

# Parts of the k-th model begin at k times this, above the rows of any data file.
STRIDE = 10**10
_FAILED = "metric failed: "
Texts = dict[str, dict[int, Written]]


def describe_chunk(
    chunk: EvaluatedChunk, place: int, name: str, sources: Mapping[str, str]
) -> dict[str, Any]:
    """The note of a part.

    Rejects are told once and not for every model; beside them, how many values there are and are
    not, on how many rows which metric failed, what was written, and by which functions of the
    user's, since a run that goes on may have others.
    """
    rejects = [_to_reject(row) for row in chunk.rejects] if place == 0 else []
    for failure in chunk.failures:
        reject = _to_reject(failure)
        rejects.append(dataclasses.replace(reject, reason=f"{reject.reason} (model {name})"))
    for failures in chunk.metric_failures.values():
        for failure in failures:
            reason = f"{_FAILED}{failure.error.message} (model {name})"
            rejects.append(dataclasses.replace(_to_reject(failure), reason=reason))
    missing: Counter[str] = Counter(
        record["status"] for record in chunk.records if record["value"] is None
    )
    return {
        "rejects": [dataclasses.asdict(reject) for reject in rejects],
        "values": sum(record["value"] is not None for record in chunk.records),
        "missing": missing,
        "failed": {name: len(failures) for name, failures in chunk.metric_failures.items()},
        "written": [[row, one.text, one.flags] for row, one in chunk.written.items()],
        "sources": dict(sources),
    }


def describe_end(sources: Mapping[str, str]) -> dict[str, Any]:
    """The note that stands for the end of a model's rows."""
    return {
        "rejects": [],
        "values": 0,
        "missing": {},
        "failed": {},
        "sources": dict(sources),
        "complete": True,
    }


def read_notes(parts: Parts) -> Iterator[dict[str, Any]]:
    """The notes of all parts, without the text."""
    for note in parts.read_notes():
        note.pop("written", None)
        yield note


def take_back(parts: Parts, sources: Mapping[str, str], models: int) -> Texts:
    """Makes parts undone whose values of the user's metrics are not, or no longer, right.

    Those are parts that another version of a function measured; and where all rows of all models
    have been measured, those in which a function failed.

    Returns:
      What was written for their rows, by model and index, to be measured again.
    """
    places = sorted(parts.done.items())
    complete = sum(first == stop for first, stop in places) == models
    texts: Texts = {}
    for (first, stop), note in zip(places, parts.read_notes(), strict=True):
        model = note["model"]
        if first == stop:
            if model in texts:  # its end is no longer reached
                del parts.done[first]
        elif note["sources"] != sources or (complete and note["failed"]):
            del parts.done[first]
            mine = texts.setdefault(model, {})
            for row, text, flags in note["written"]:
                mine[row] = Written(text=text, flags=tuple(flags))
    return texts


def say_again(texts: Mapping[str, Mapping[int, Written]], sources: Mapping[str, str]) -> str:
    """That rows are measured again, for a person."""
    count = sum(map(len, texts.values()))
    kept = f", {count:,} texts that were kept among them" if count else ""
    return f"rows are measured again by {', '.join(sources)}{kept}"


def find_first_failure(notes: Iterable[Mapping[str, Any]]) -> str:
    """The first failure of a metric, with file and row."""
    for reject in (reject for note in notes for reject in note["rejects"]):
        if reject["reason"].startswith(_FAILED):
            where = ", ".join(part for part in (reject["file"], reject["row"]) if part)
            return f"{where}: {reject['reason'].removeprefix(_FAILED)}"
    return ""


def list_reasons(notes: Iterable[Mapping[str, Any]]) -> str:
    """Why there are no values, for a person."""
    reasons = dict.fromkeys(reason for note in notes for reason in note["missing"])
    return f"no metric has a value ({', '.join(reasons) or 'there are no rows'})"


def _to_reject(row: Reject | Failure) -> Reject:
    return row if isinstance(row, Reject) else make_reject(row.example, row.error)
