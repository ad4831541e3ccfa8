"""The part of a page about what c and z contribute: a table, and token heat maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instructjax.report.contributions import (
    Response,
    choose_shown,
    summarize_contributions,
)
from instructjax.report.heatmap import LAYERS, HeatToken, make_heat_tokens
from instructjax.report.numbers import show_number, show_with_spread
from instructjax.report.results import Results
from instructjax.report.score_tables import pick_score_tables, read_responses
from instructjax.report.scores import CellScores
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten
from instructjax.scoring.tables.table import read_metadata

_HINT = "Point at a token, or tap it."


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One response with its instruction and input."""

    instruction: str
    input: str
    tokens: list[HeatToken]
    hint: str


@dataclass(frozen=True, kw_only=True)
class ContributionSection:
    """What c and z add to log Pr(y | c, z)."""

    note: str
    table: Table
    maps: list[HeatMap]
    layers: tuple[str, ...]


def describe_contributions(
    results: Results,
    scores: CellScores,
    spell: Callable[[Sequence[int]], list[str]] | None,
) -> ContributionSection | None:
    """Means over all responses that the model's score tables have in four contexts; some maps.

    Raises:
      UsageError: there are score tables of several models, or a response is there twice.
    """
    tables = pick_score_tables(results, scores.model)
    responses = read_responses(tables)
    if not responses:
        return None
    instruction = dict(zip(scores.id, scores.instruction, strict=True))
    inputs = dict(zip(scores.id, scores.input, strict=True))
    tasks = dict(zip(scores.id, [] if scores.tasks is None else scores.tasks, strict=False))

    def name_shared(id: str) -> tuple[str, ...]:
        shared = (instruction.get(id, id), inputs.get(id, id))
        return (*shared, tasks.get(id, id)) if tasks else shared

    named = read_metadata(tables[0]).get("model")
    of = f", scored by {shorten(named, 80)}" if named else ""
    found = summarize_contributions(responses, name_shared)
    rows = [
        (
            part.name,
            part.formula,
            show_with_spread(part.mean, part.half_width),
            show_number(part.per_token),
        )
        for part in found
    ]
    maps = []
    for response in choose_shown(responses, name_shared):
        names = (instruction.get(response.id, ""), inputs.get(response.id, ""))
        texts = [shorten(results.texts.get(name, "")) or response.id for name in names]
        maps.append(_make_map(response, texts, spell))
    return ContributionSection(
        note=f"Means over {len(responses):,} responses y{of}, each with instruction and input, "
        "with either alone, and with neither. Leaving one out is an ablation: the four need not "
        "come from one joint distribution.",
        table=make_table(
            "Nats a response (with 95% interval, clustered by instruction and input), and a token",
            ("what adds", "how it is found"),
            ("a response", "a token"),
            rows,
        ),
        maps=maps,
        layers=LAYERS,
    )


def _make_map(
    response: Response,
    texts: Sequence[str],
    spell: Callable[[Sequence[int]], list[str]] | None,
) -> HeatMap:
    ids = response.token_ids.tolist()
    pieces = [f"{id} " for id in ids] if spell is None else spell(ids)
    return HeatMap(
        instruction=texts[0],
        input=texts[1],
        tokens=make_heat_tokens(pieces, response.layers),
        hint=_HINT,
    )
