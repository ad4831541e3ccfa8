"""How much it matters how an instruction is worded, where tasks have several wordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.generalization.sensitivity import multi_prompt_summary, spread_noise
from instructjax.report.grids import TaskGrids, make_grids
from instructjax.report.numbers import show_number
from instructjax.report.scores import CellScores
from instructjax.report.sections import TrackItem
from instructjax.report.tables import Table, make_table
from instructjax.report.texts import shorten
from instructjax.report.tracks import Scale, make_scale

_SHOWN = 10
_PERMUTATIONS = 500
# Made once, so that grids of a size that was seen before need no compilation.
_summarize = jax.jit(multi_prompt_summary)
_find_noise = jax.jit(jax.vmap(partial(spread_noise, permutations=_PERMUTATIONS)))


@dataclass(frozen=True, kw_only=True)
class WordingSection:
    """Tasks by their spread, the widest first."""

    note: str
    tracks: list[TrackItem]
    scale: Scale
    table: Table


def describe_wording(scores: CellScores, texts: Mapping[str, str]) -> WordingSection | None:
    """The spread over wordings of each task; None where no input has two."""
    grids = make_grids(scores)
    if grids is None:
        return None
    count = grids.mask.sum(2)
    means = np.where(grids.mask, grids.score, 0).sum(2) / np.maximum(count, 1)
    there = count > 0
    with jax.enable_x64(True):
        summary = _summarize(jnp.asarray(means), jnp.asarray(there))
        keys = jax.random.split(jax.random.key(0), len(grids.tasks))
        noise = _find_noise(keys, grids.score, grids.mask)
    spread, chance, p = (np.asarray(x) for x in (noise.spread, noise.expected, noise.p_value))
    high, low, average, cps = (
        np.asarray(x) for x in (summary.max_p, summary.min_p, summary.avg_p, summary.cps)
    )
    higher = scores.better == "higher"
    worst_mean, best_mean = (low, high) if higher else (high, low)
    has_cps = higher and bool(((scores.value >= 0) & (scores.value <= 1)).all())
    items, rows = [], []
    for t in np.argsort(-spread, kind="stable")[:_SHOWN]:
        num_inputs = int(grids.mask[t].any(0).sum())
        items.append(
            TrackItem(
                label=shorten(grids.tasks[t], 60),
                note=f"{int(there[t].sum())} wordings, {num_inputs} inputs; by chance "
                f"{show_number(float(chance[t]), 2)}, p {show_number(float(p[t]), 1)}",
                value=float(average[t]),
                low=float(low[t]),
                high=float(high[t]),
                text=f"spread {show_number(float(spread[t]), 2)}",
            )
        )
        numbers = [average[t], worst_mean[t], best_mean[t], *([cps[t]] if has_cps else [])]
        worst = _find_worst(grids, means if higher else -means, there, int(t))
        rows.append(
            (
                shorten(grids.tasks[t], 60),
                shorten(texts.get(worst, "") or worst, 120),
                *(show_number(float(x)) for x in numbers),
            )
        )
    note = (
        f"Mean {scores.metric} of each wording, on inputs that several wordings share: the dot is "
        "the mean over wordings, the line goes from the worst to the best. Median spread of "
        f"{len(spread)} task{'s' if len(spread) > 1 else ''}: "
        f"{show_number(float(np.median(spread)), 2)}; "
        f"{show_number(float(np.median(chance)), 2)} would be there by chance, if wording made no "
        "difference."
    )
    columns = ("mean", "worst", "best", *(["CPS"] if has_cps else []))
    return WordingSection(
        note=note,
        tracks=items,
        scale=make_scale([end for item in items for end in (item.low, item.high)], include=()),
        table=make_table("Worst wordings", ("task", "worst wording"), columns, rows),
    )


def _find_worst(grids: TaskGrids, means: np.ndarray, there: np.ndarray, t: int) -> str:
    return grids.instructions[t][int(np.where(there[t], means[t], np.inf).argmin())]
