"""What `instructjax evaluate` says at the end."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from instructjax.cli.messages import escape_controls, say_error
from instructjax.data import RejectsFile
from instructjax.evaluation.summary import compare_models, count_flags, summarize
from instructjax.evaluation.table import read_evaluation


def show_evaluation(out: Path, rows: int, rejects: RejectsFile) -> None:
    """Prints means, paired differences, and what was left out and why.

    Args:
      out: the table, written.
      rows: of the data.
      rejects: those that cannot be used.
    """
    columns = read_evaluation(out)
    means = summarize(columns)
    table = _make_table("metric", "model", "mean", "SE", "rows", "instructions", "no value")
    for one in means:
        table.add_row(
            escape_controls(one.metric),
            escape_controls(one.model),
            show_number(one.mean),
            show_number(one.standard_error),
            f"{one.num_examples:,}",
            f"{one.num_instructions:,}",
            f"{one.num_missing:,}" if one.num_missing else "",
        )
    console = Console()
    console.print(table)
    differences = compare_models(columns)
    if differences:
        table = _make_table("metric", "paired difference", "mean", "SE", "rows", "instructions")
        for one in differences:
            table.add_row(
                escape_controls(one.metric),
                escape_controls(f"{one.model} - {one.baseline}"),
                show_number(one.difference, sign=True),
                show_number(one.standard_error),
                f"{one.num_examples:,}",
                f"{one.num_instructions:,}",
            )
        console.print(table)
    print("SE: standard error, clustered by instruction")
    for one in count_flags(columns):
        print(escape_controls(str(one)))
    for one in means:
        if one.num_examples == 0:
            at = (columns["metric"] == one.metric) & (columns["model"] == one.model)
            reasons = ", ".join(np.unique(columns["status"][at].astype(str))[:5])
            say_error(f"{one.metric} of {one.model} has no value: {reasons}", label="warning: ")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in rejects.counts.most_common())
    left_out = f"left out {rejects.total:,} ({kinds})" if kinds else "nothing was left out"
    models = len(np.unique(columns["model"].astype(str)))
    read = "1 row" if rows == 1 else f"{rows:,} rows"
    by = "1 model" if models == 1 else f"{models} models"
    print(escape_controls(f"evaluated {by} on {read} in {out}; {left_out}"), flush=True)
    if rejects.total:
        say_error(rejects.summarize(), label="warning: ")


def show_number(value: float, *, sign: bool = False) -> str:
    """Four decimals, or nothing where there is no number.

    >>> show_number(0.5, sign=True), show_number(math.nan)
    ('+0.5000', '')
    """
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}.4f}"


def _make_table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        text = name in ("metric", "model", "paired difference")
        table.add_column(
            name, justify="left" if text else "right", overflow="fold", no_wrap=not text
        )
    return table
