"""Which score tables are those of a model."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from instructjax.errors import UsageError
from instructjax.report.contributions import Response, find_responses
from instructjax.report.results import Results
from instructjax.scoring.tables.table import read_metadata

_PRINT = "model_fingerprint"


def pick_score_tables(results: Results, model: str) -> tuple[pa.Table, ...]:
    """The score tables of a model, by its fingerprint or name; else all, if they are of one model.

    Raises:
      UsageError: they are of several models, and none is this one.
    """
    mine = {model, *_find_fingerprints(results, model)}
    abouts = [read_metadata(table) for table in results.scores]
    names = [{about.get(_PRINT), about.get("model")} - {None} for about in abouts]
    # A fingerprint says more than a name, which two models may have.
    same = [about.get(_PRINT) in mine for about in abouts]
    same = same if any(same) else [bool(name & mine) for name in names]
    picked = tuple(table for table, is_mine in zip(results.scores, same, strict=True) if is_mine)
    picked = picked or results.scores
    abouts = [read_metadata(table) for table in picked]
    if len({about.get(_PRINT, about.get("model")) for about in abouts}) > 1:
        named = ", ".join(sorted({about.get("model", "no name") for about in abouts}))
        raise UsageError(
            f"score tables of several models ({named:.200}): which is that of {model!r:.80} is not "
            "known",
            remedy="give the score tables of one model",
        )
    return picked


def read_responses(tables: Sequence[pa.Table]) -> list[Response]:
    """The responses of score tables of one model that have all four contexts.

    Raises:
      UsageError: two tables have the same response: it would count twice.
    """
    found: dict[tuple[str, int], Response] = {}
    for table in tables:
        for response in find_responses(table):
            name = (response.id, response.candidate)
            if name in found:
                raise UsageError(
                    f"score tables have the response of {response.id!r:.80} twice",
                    remedy="give each score table once, with ids of their own",
                )
            found[name] = response
    return list(found.values())


def _find_fingerprints(results: Results, model: str) -> set[str]:
    """Of the model, from the evaluation tables; two of one name have that of their file too."""
    found = set()
    for file in results.files:
        for key, value in file.metadata.items():
            name = key.removesuffix(f"/{_PRINT}")
            if name != key and model in (name, f"{name} ({file.name})"):
                found.add(value)
    return found
