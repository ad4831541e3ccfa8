"""Parts of a page, made of an analysis and its scores: grid, gaps, answers, what hurts, leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.generalization.analysis import Analysis
from instructjax.generalization.estimate import Estimate
from instructjax.generalization.split_recipes import CELLS
from instructjax.generalization.split_words import has_other_words
from instructjax.report.hurts import Group, find_worst
from instructjax.report.numbers import (
    show_estimate,
    show_interval,
    show_number,
    show_percent,
)
from instructjax.report.scores import CellScores
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten

SHORT_CELLS: dict[str, str] = dict[str, str](
    zip(
        CELLS,
        # No-break spaces: of several, each stays together.
        (x.replace(" ", "\u00a0") for x in ("c, z seen", "z new", "c new", "c, z new")),
        strict=True,
    )
)
# By the cells that a gap was measured in, what else there is to say of it.
_SIDES = {
    "01": "known instructions",
    "23": "unseen instructions",
    "02": "known inputs",
    "13": "unseen inputs",
}
_ANSWERS = {"yes": "yes", "no": "no", "unclear": "too little data to tell"}


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """A cell of the 2 x 2 picture; texts, and how deep its colour is, 6 to 34 per cent."""

    what: str
    mean: str
    range: str
    rows: int
    missing: int
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


def make_grid(
    analysis: Analysis, missing: Sequence[Mapping[str, int]] = ({}, {}, {}, {})
) -> list[GridCell]:
    """The four cells; the better the mean, the deeper the colour."""
    sign = 1 if analysis.better == "higher" else -1
    means = [sign * cell.estimate for cell in analysis.cells if cell is not None]
    low, high = min(means), max(means)
    cells = []
    for k, cell in enumerate(analysis.cells):
        share = 0.5
        if high > low and cell is not None:
            share = (sign * cell.estimate - low) / (high - low)
        cells.append(
            GridCell(
                what=analysis.words.cells[k],
                mean="" if cell is None else show_number(cell.estimate),
                range="" if cell is None else _show_range(cell),
                rows=int(analysis.counts[k]),
                missing=sum(missing[k].values()),
                instructions=int(analysis.num_instructions[k]),
                inputs=int(analysis.num_inputs[k]),
                share=round(6 + 28 * share, 1),
            )
        )
    return cells


def _show_range(cell: Estimate) -> str:
    if math.isfinite(cell.half_width):
        return show_interval(cell.low, cell.high)
    return cell.why_unbounded


def list_gaps(analysis: Analysis) -> list[TrackItem]:
    """The gaps that could be measured, and how each was where a cell is empty."""
    words = analysis.words
    named = {
        "intra": (words.intra, words.cells[1]),
        "inter": (words.inter, words.cells[2]),
        "joint": ("joint gap", words.cells[3]),
        "interaction": ("interaction", "negative: both new cost more than the two gaps together"),
    }
    items = []
    for name, (label, what) in named.items():
        gap = getattr(analysis.gaps, name)
        if gap is not None:
            side = _SIDES.get("".join(sorted(filter(str.isdigit, gap.contrast))))
            # No-break spaces: a formula stays on one line.
            formula = gap.contrast.replace("-", "−").replace(" ", "\u00a0")
            items.append(
                TrackItem(
                    label=label,
                    note=f"{what}{f', {side}' if side else ''}: {formula}",
                    value=gap.estimate,
                    low=gap.low,
                    high=gap.high,
                    text=show_estimate(gap),
                )
            )
    return items


def list_answers(analysis: Analysis) -> list[Chip]:
    """Whether it generalizes over inputs, instructions, and both."""
    words = analysis.words
    names = [cell[0].upper() + cell[1:] for cell in (*words.cells[1:3], "both at once")]
    answers = (analysis.inputs, analysis.instructions, analysis.both)
    return [
        Chip(question=name, answer=_ANSWERS.get(answer, answer), kind=answer.split()[0])
        for name, answer in zip(names, answers, strict=True)
    ]


def list_advice(analysis: Analysis) -> list[str]:
    """Of the gaps between seen and unseen z and c, what would halve each interval."""
    words = analysis.words
    gaps: dict[str, list[str]] = {}
    for gap, name in (("intra", words.intra), ("inter", words.inter)):
        if (needed := analysis.needed[gap]) is not None:
            gaps.setdefault(needed.say(with_unit=True), []).append(f"the {name}")
    told = []
    for clause, names in gaps.items():
        link = " of " if clause.endswith("interval") else ": there is no interval of "
        told.append(clause[0].upper() + clause[1:] + link + " and of ".join(names) + ".")
    return told


def say_missing(
    missing: Sequence[Mapping[str, int]], cells: Sequence[str], rows: Sequence[int], outside: int
) -> str:
    """Which rows are not in the numbers, by cell and reason; "" where all are.

    >>> print(say_missing([{}, {"no prediction": 2}, {}, {}], list("abcd"), [4, 6, 4, 4], 0))
    Not in these numbers: 2 of 8 scores of b (no prediction).
    """
    parts = []
    for name, reasons, here in zip(cells, missing, rows, strict=True):
        if count := sum(reasons.values()):
            why = ", ".join(
                f"{n:,} {reason}" if len(reasons) > 1 else reason for reason, n in reasons.items()
            )
            parts.append(f"{count:,} of {here + count:,} scores of {name} ({why})")
    if outside:
        parts.append(f"{outside:,} rows that are in no cell")
    return f"Not in these numbers: {'; '.join(parts)}." if parts else ""


def list_worst(scores: CellScores, texts: Mapping[str, str]) -> list[Table]:
    """Tables of the instructions, inputs and tasks that hurt most."""
    tables = []
    sides = {"Instructions": scores.instruction, "Inputs": scores.input}
    if scores.tasks is not None and not _are_one_to_one(scores.task, scores.instruction):
        sides["Tasks"] = scores.task
    for title, names in sides.items():
        worst = find_worst(scores.goodness, names, scores.cell, scores.task, limit=6)
        if worst:
            sign = 1 if scores.better == "higher" else -1
            rows = [_worst_row(group, texts, title == "Tasks", sign) for group in worst]
            noun = title.lower().removesuffix("s")
            change = "rises" if scores.better == "higher" else "falls"
            # Whatever the weights of the cells: here every score counts alike.
            numbers = ("mean", "scores", f"mean of all scores {change} by")
            tables.append(make_table(title, (noun, "in"), numbers, rows))
    return tables


def _are_one_to_one(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


def _worst_row(group: Group, texts: Mapping[str, str], is_task: bool, sign: int) -> tuple[str, ...]:
    text = texts.get(group.name, "")
    name = shorten(text, 160) if text.strip() else shorten(group.name, 60)
    if group.task and not is_task:
        name += f" ({shorten(group.task, 60)})"
    cells = "; ".join(SHORT_CELLS[cell] for cell in group.cells)
    mean = show_number(sign * group.mean)
    return (name, cells, mean, f"{group.count:,}", show_number(group.rise))


@dataclass(frozen=True, kw_only=True)
class LeakSection:
    """What is said about leaks, how many are left among the unseen, and the first of them."""

    note: str
    left: int
    table: Table | None


def warn_of_leaks(leaks: LeakSection | None) -> str:
    """What the verdict says of them; "" where none is left.

    >>> warn_of_leaks(LeakSection(note="", left=1, table=None))
    ' (1 leak among the unseen; see Leaks)'
    """
    if leaks is None or not leaks.left:
        return ""
    return f" ({leaks.left:,} leak{'s' if leaks.left > 1 else ''} among the unseen; see Leaks)"


def warn_of_words(atom_divergence: float | None) -> str:
    """What the verdict says of a compositional split whose words are not known; else "".

    >>> warn_of_words(0.25), warn_of_words(0.01)
    (' (words differ too: atom divergence 0.25, where 0.02 is allowed)', '')
    """
    if atom_divergence is None or not has_other_words(atom_divergence):
        return ""
    return f" (words differ too: atom divergence {atom_divergence:.2f}, where 0.02 is allowed)"


def describe_leaks(
    split: Mapping[str, Any] | None, leaks: Sequence[Mapping[str, Any]], limit: int = 12
) -> LeakSection | None:
    """How many texts leak on each side, and the pairs with most in common."""
    parts, left = [], 0
    found = (split or {}).get("leaks")
    if isinstance(found, Mapping) and found.get("action") != "off":
        for side in ("instruction", "input"):
            counts = found.get(side)
            if isinstance(counts, Mapping):
                left += int(counts.get("leaked", 0))
                parts.append(
                    f"{int(counts.get('leaked', 0)):,} of {int(counts.get('compared', 0)):,} "
                    f"unseen {side}s share much with training {side}s"
                )
        if found.get("action") == "remove":
            parts.append("their rows were taken out")
            left = 0
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
    left = left if parts else len(leaks)
    return LeakSection(note=note[0].upper() + note[1:] + ".", left=left, table=table)


def _leak_weight(leak: Mapping[str, Any]) -> tuple[bool, float]:
    return leak.get("side") == "input", _share(leak) + _number(leak.get("similarity"))


def _share(leak: Mapping[str, Any]) -> float:
    covers = [_number(value) for name, value in leak.items() if name.startswith("cover_")]
    return max(covers, default=0.0)


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and bool(np.isfinite(value))
    return float(value) if good else 0.0
