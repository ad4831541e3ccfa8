"""Parts of a page, made of an analysis and its scores: grid, gaps, answers, what hurts, leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.generalization.analysis import Analysis
from instructjax.generalization.split_recipes import CELLS
from instructjax.report.hurts import Group, find_worst
from instructjax.report.numbers import (
    show_interval,
    show_number,
    show_percent,
    show_signed,
    show_with_spread,
)
from instructjax.report.scores import CellScores
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten

CELL_NAMES = ("training pairs", "intra-task", "known inputs", "inter-task")
SHORT_CELLS: dict[str, str] = dict[str, str](
    zip(
        CELLS,
        # No-break spaces: of several, each stays together.
        (x.replace(" ", "\u00a0") for x in ("c, z seen", "z new", "c new", "c, z new")),
        strict=True,
    )
)
# Of each gap its name, and what it is in the cells that it was measured in.
_GAPS = {
    "intra": (
        "intra-task gap",
        {"m0 - m1": "new inputs, known instructions", "m2 - m3": "new inputs, new instructions"},
    ),
    "inter": (
        "inter-task gap",
        {"m0 - m2": "new instructions, known inputs", "m1 - m3": "new instructions, new inputs"},
    ),
    "joint": ("joint gap", {"m0 - m3": "both new"}),
    "interaction": (
        "interaction",
        {"m0 - m1 - m2 + m3": "negative: both new cost more than the two alone"},
    ),
}
_ANSWERS = {"yes": "yes", "no": "no", "unclear": "too little data to tell"}


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """A cell of the 2 x 2 picture; texts, and how deep its colour is, 6 to 34 per cent."""

    what: str
    mean: str
    range: str
    rows: int
    instructions: int
    inputs: int
    share: float


@dataclass(frozen=True, kw_only=True)
class TrackItem:
    """A value with its interval, as a dot with whiskers."""

    label: str
    note: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A question and its answer."""

    question: str
    answer: str
    kind: str


def make_grid(analysis: Analysis) -> list[GridCell]:
    """The four cells; the higher the mean, the deeper the colour."""
    means = [cell.estimate for cell in analysis.cells if cell is not None]
    low, high = min(means), max(means)
    cells = []
    for k, cell in enumerate(analysis.cells):
        share = 0.5 if high == low or cell is None else (cell.estimate - low) / (high - low)
        cells.append(
            GridCell(
                what=CELL_NAMES[k],
                mean="" if cell is None else show_number(cell.estimate),
                range="" if cell is None else show_interval(cell.low, cell.high),
                rows=int(analysis.counts[k]),
                instructions=int(analysis.num_instructions[k]),
                inputs=int(analysis.num_inputs[k]),
                share=round(6 + 28 * share, 1),
            )
        )
    return cells


def list_gaps(analysis: Analysis) -> list[TrackItem]:
    """The gaps that could be measured, and how each was where a cell is empty."""
    items = []
    for name, (label, notes) in _GAPS.items():
        gap = getattr(analysis.gaps, name)
        if gap is not None:
            # No-break spaces: a formula stays on one line.
            formula = gap.contrast.replace("-", "−").replace(" ", "\u00a0")
            items.append(
                TrackItem(
                    label=label,
                    note=f"{notes[gap.contrast]}: {formula}",
                    value=gap.estimate,
                    low=gap.low,
                    high=gap.high,
                    text=show_with_spread(gap.estimate, gap.half_width),
                )
            )
    return items


def list_answers(analysis: Analysis) -> list[Chip]:
    """Whether it generalizes over inputs, instructions, and both."""
    questions = {
        "New inputs": analysis.inputs,
        "New instructions": analysis.instructions,
        "Both at once": analysis.both,
    }
    return [
        Chip(question=question, answer=_ANSWERS.get(a, a), kind=a.split()[0])
        for question, a in questions.items()
    ]


def split_verdict(verdict: str) -> tuple[str, str]:
    """The sentence, and the numbers after it.

    >>> split_verdict("generalizes over inputs: intra-task gap 0.02 +- 0.01")
    ('generalizes over inputs', 'intra-task gap 0.02 ± 0.01')
    """
    head, _, tail = verdict.rpartition(": ")
    if not head or "+-" not in tail:
        return verdict, ""
    return head, tail.replace("+-", "±").replace(" -", " −")


def list_worst(scores: CellScores, texts: Mapping[str, str]) -> list[Table]:
    """Tables of the instructions, inputs and tasks that hurt most."""
    tables = []
    sides = {"Instructions": scores.instruction, "Inputs": scores.input}
    if scores.tasks is not None and not _are_one_to_one(scores.task, scores.instruction):
        sides["Tasks"] = scores.task
    for title, names in sides.items():
        worst = find_worst(scores.value, names, scores.cell, scores.task, limit=6)
        if worst:
            rows = [_worst_row(group, texts, title == "Tasks") for group in worst]
            noun = title.lower().removesuffix("s")
            numbers = ("mean", "scores", "mean of all rises by")
            tables.append(make_table(title, (noun, "in"), numbers, rows))
    return tables


def _are_one_to_one(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


def _worst_row(group: Group, texts: Mapping[str, str], is_task: bool) -> tuple[str, ...]:
    text = texts.get(group.name, "")
    name = shorten(text, 160) if text.strip() else shorten(group.name, 60)
    if group.task and not is_task:
        name += f" ({shorten(group.task, 60)})"
    cells = "; ".join(SHORT_CELLS[cell] for cell in group.cells)
    return (name, cells, show_number(group.mean), f"{group.count:,}", show_signed(group.rise))


@dataclass(frozen=True, kw_only=True)
class LeakSection:
    """What is said about leaks, and the first of them."""

    note: str
    table: Table | None


def describe_leaks(
    split: Mapping[str, Any] | None, leaks: Sequence[Mapping[str, Any]], limit: int = 12
) -> LeakSection | None:
    """How many texts leak on each side, and the pairs with most in common."""
    parts = []
    found = (split or {}).get("leaks")
    if isinstance(found, Mapping) and found.get("action") != "off":
        for side in ("instruction", "input"):
            counts = found.get(side)
            if isinstance(counts, Mapping):
                parts.append(
                    f"{int(counts.get('leaked', 0)):,} of {int(counts.get('compared', 0)):,} "
                    f"unseen {side}s share much with training {side}s"
                )
        if found.get("action") == "remove":
            parts.append("their rows were taken out")
    if not parts and not leaks:
        return None
    rows = []
    for leak in sorted(leaks, key=_leak_weight, reverse=True)[:limit]:
        rows.append(
            (
                shorten(str(leak.get("text", "")), 140),
                shorten(str(leak.get("train_text", "")), 140),
                shorten(", ".join(map(str, leak.get("kinds", ()))), 80),
                " / ".join(shorten(str(leak.get(name, "")), 20) for name in ("id", "train_id")),
                show_percent(_share(leak)),
                show_number(_number(leak.get("similarity")), 2),
            )
        )
    title = "Pairs with most in common" + (
        f" ({limit} of {len(leaks):,})" if len(leaks) > limit else ""
    )
    texts = ("unseen", "in training", "how", "rows")
    table = make_table(title, texts, ("words shared", "Jaccard"), rows) if rows else None
    note = "; ".join(parts) or f"{len(leaks):,} unseen texts share much with training texts"
    return LeakSection(note=note[0].upper() + note[1:] + ".", table=table)


def _leak_weight(leak: Mapping[str, Any]) -> tuple[bool, float]:
    return leak.get("side") == "input", _share(leak) + _number(leak.get("similarity"))


def _share(leak: Mapping[str, Any]) -> float:
    covers = [_number(value) for name, value in leak.items() if name.startswith("cover_")]
    return max(covers, default=0.0)


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and bool(np.isfinite(value))
    return float(value) if good else 0.0
