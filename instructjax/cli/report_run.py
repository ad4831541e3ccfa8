"""`instructjax report`: from tables to a page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.report import Report
from instructjax.cli.steps import show_step
from instructjax.errors import InstructJaxError
from instructjax.report.page import check_out, make_page
from instructjax.report.results import Results, read_results
from instructjax.report.score_tables import pick_score_tables


def run_report(options: Report) -> int:
    """Makes a page; returns the exit code.

    Raises:
      InstructJaxError: there is no page; see the message.
    """
    check_out(options.out, overwrite=options.overwrite)
    if options.figures is not None:
        from instructjax.report.figures import check_matplotlib

        check_matplotlib()
    with show_step("reading and analysing") as tell:
        tell(2.0)
        results = read_results(options.results)
        page = make_page(
            results,
            model=options.model,
            metric=options.metric,
            weights=options.weights,
            epsilon=options.epsilon,
            smallest_gap=options.smallest_gap,
            better=options.better,
            title=options.title,
            command=write_command(options),
            spell=_load_spelling(results, options.model, options.tokenizer),
        )
        page.save(options.out, overwrite=options.overwrite)
        figures = [] if options.figures is None else page.save_figures(options.figures)
    if not results.texts:
        say_error(
            "instructions and inputs are named by their hashes; give the split's split.json too",
            label="note: ",
        )
    # No-break spaces are for the page: a terminal would be shown them as escapes.
    print(escape_controls(page.verdict.replace("\u00a0", " ")))
    told = page.missing.removesuffix(".") if page.missing else "nothing was left out"
    also = f" and {len(figures)} figures to {options.figures}" if figures else ""
    print(escape_controls(f"wrote {options.out}{also}; {told}"))
    return 0


def write_command(options: Report) -> str:
    """The command line that makes this page."""
    words = ["instructjax", "report", *map(str, options.results), "--out", str(options.out)]
    for name in ("metric", "model", "epsilon", "better", "tokenizer", "figures"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", str(value)]
    words += ["--weights", options.weights, "--smallest-gap", str(options.smallest_gap)]
    if options.title != Report.title:
        words += ["--title", options.title]
    # The page is there when the command is read.
    words.append("--overwrite")
    return shlex.join(words)


def _load_spelling(
    results: Results, model: str | None, spec: str | None
) -> Callable[[Sequence[int]], list[str]] | None:
    """What makes texts of the token ids of score tables; None where there are none."""
    if not results.scores:
        return None
    from instructjax.models import load_model
    from instructjax.scoring.tables.table import read_metadata

    tables = pick_score_tables(results, model or results.models[0])
    named = spec or read_metadata(tables[0]).get("model")
    if named is None:
        say_error("the score table names no model; token ids are shown", label="warning: ")
        return None
    try:
        return load_model(named).tokenizer.pieces
    except InstructJaxError as error:
        if spec is not None:
            raise
        say_error(f"token ids are shown: {error}; give --tokenizer", label="warning: ")
        return None
