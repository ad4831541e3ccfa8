"""Score tables of several models are never averaged, nor one counted twice."""

from __future__ import annotations

from typing import Any

import pytest

from instructjax.errors import UsageError
from instructjax.report.results import Results, SourceFile, make_results
from instructjax.report.score_tables import pick_score_tables, read_responses
from instructjax.scoring.tables.table import schema_with

ROW = {"model": "m", "id": "a", "metric": "f1", "value": 0.5, "cell": "seen_c_seen_z"}


def gather(score_table: Any, *abouts: dict[str, str], prints: dict[str, str] | None = None) -> Any:
    """Results of models "m" and "n" with score tables that carry these metadata."""
    tables = [score_table.replace_schema_metadata(schema_with(x).metadata) for x in abouts]
    metadata = {f"{name}/model_fingerprint": value for name, value in (prints or {}).items()}
    file = SourceFile(name="r.parquet", sha256="", metadata=metadata)
    return make_results([ROW, ROW | {"model": "n"}], scores=tables, files=[file])


def pick(results: Results, model: str) -> list[int]:
    picked = pick_score_tables(results, model)
    return [k for k, table in enumerate(results.scores) if any(table is one for one in picked)]


def test_those_of_the_model_are_taken(score_table: Any) -> None:
    named = gather(score_table, {"model": "m"}, {"model": "n"})
    assert (pick(named, "m"), pick(named, "n")) == ([0], [1])
    # Evaluated by a name of its own: the fingerprint tells.
    printed = gather(
        score_table,
        {"model": "m", "model_fingerprint": "1"},
        {"model": "m", "model_fingerprint": "2"},
        prints={"m": "2", "n": "1"},
    )
    assert (pick(printed, "m"), pick(printed, "n")) == ([1], [0])
    assert pick(gather(score_table, {"model": "hub/m"}), "m") == [0]


def test_several_models_and_no_telling_which_is_refused(score_table: Any) -> None:
    with pytest.raises(UsageError, match=r"several models \(x, y\).* give the score tables of one"):
        pick_score_tables(gather(score_table, {"model": "x"}, {"model": "y"}), "m")


def test_a_response_counts_once(score_table: Any) -> None:
    results = gather(score_table, {"model": "m"}, {"model": "m"})
    assert len(read_responses(results.scores[:1])) == 2
    with pytest.raises(UsageError, match="the response of '0-0-0' twice"):
        read_responses(pick_score_tables(results, "m"))
