"""Leaks of a split, on the side of c and of z, as rows that name both ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8

from instructjax.generalization.leaks import LeakRules, find_leaks
from instructjax.generalization.split_recipes import CELLS
from instructjax.generalization.split_rows import SplitRows

EXCERPT = 300
SIDES = ("instruction", "input")


@dataclass(frozen=True, kw_only=True)
class SplitLeaks:
    """What was found.

    Attributes:
      records: one a leaked text: the evaluated row and the training row, what they share.
      rows: which of the rows have a leaked text on a side that is unseen.
      summary: by side: texts compared, leaked, by kind, and those that share any n-gram.
    """

    records: tuple[dict[str, Any], ...]
    rows: Bool[np.ndarray, " N"]
    summary: dict[str, Any]


def find_split_leaks(
    rows: SplitRows,
    cell: Int8[np.ndarray, " N"],
    evaluated: Bool[np.ndarray, " N"],
    rules: LeakRules | None = None,
    *,
    on_progress: Callable[[float], None] | None = None,
) -> SplitLeaks:
    """Compares every unseen instruction with those trained on, and every unseen input likewise.

    Different wordings of one task share words by nature: what is found among instructions says how
    new the unseen ones are.

    Args:
      rows: of the split.
      cell: of each row, see `assign_cells`.
      evaluated: which rows are; others of the unseen cells are not looked at.
      rules: when a text counts as leaked.
      on_progress: called with the share of the work that is done.
    """
    rules = rules or LeakRules()
    records: list[dict[str, Any]] = []
    leaked = np.zeros(len(cell), bool)
    summary: dict[str, Any] = {}
    for which, name in enumerate(SIDES):
        side = rows.side(which)
        unseen = evaluated & np.isin(cell, ((2, 3), (1, 3))[which])
        new = np.unique(side.of_row[unseen])
        known = np.unique(side.of_row[cell == 0])

        def tell(share: float, which: int = which) -> None:
            if on_progress is not None:
                on_progress((which + share) / 2)

        found = find_leaks(
            rows.texts, side.numbers[new], side.numbers[known], rules, on_progress=tell
        )
        place_of = dict(zip(side.numbers.tolist(), range(len(side.numbers)), strict=True))
        new_row = _first_rows(side.of_row, unseen, rows)
        known_row = _first_rows(side.of_row, cell == 0, rows)
        rows_of = np.bincount(side.of_row[unseen], minlength=len(side.keys))
        bad = []
        for leak in found.leaks:
            text, source = place_of[leak.text], place_of[leak.source]
            bad.append(text)
            here, there = rows.read(int(new_row[text])), rows.read(int(known_row[source]))
            records.append(
                {
                    "side": name,
                    "kinds": list(leak.kinds),
                    f"cover_{rules.short}": round(leak.cover_short, 4),
                    f"cover_{rules.long}": round(leak.cover_long, 4),
                    "similarity": round(leak.similarity, 4),
                    "shared": leak.shared[:EXCERPT],
                    "id": here["id"],
                    "task": here.get("task"),
                    "cell": CELLS[cell[new_row[text]]],
                    "rows": int(rows_of[text]),
                    "train_id": there["id"],
                    "train_task": there.get("task"),
                    "text": here.get(name, "")[:EXCERPT],
                    "train_text": there.get(name, "")[:EXCERPT],
                }
            )
        leaked |= unseen & np.isin(side.of_row, bad)
        summary[name] = {
            "compared": len(new),
            "with": len(known),
            "leaked": len(found.leaks),
            "kinds": dict(sorted(Counter(k for leak in found.leaks for k in leak.kinds).items())),
            f"share_an_{rules.short}_gram": int((found.cover_short > 0).sum()),
            f"share_a_{rules.long}_gram": int((found.cover_long > 0).sum()),
        }
    return SplitLeaks(records=tuple(records), rows=leaked, summary=summary)


def _first_rows(of_row: np.ndarray, among: Bool[np.ndarray, " N"], rows: SplitRows) -> np.ndarray:
    """A row of each text, of those among which to look: the first in the order of contents."""
    order = rows.order()
    order = order[among[order]][::-1]
    first = np.full(int(of_row.max(initial=-1)) + 1, -1)
    first[of_row[order]] = order
    return first
