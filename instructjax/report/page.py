"""The page: all that a report says, and the ways of writing it down."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructjax.errors import UsageError
from instructjax.generalization.analysis import Analysis
from instructjax.generalization.verdict_words import Better
from instructjax.report.attribution import ContributionSection, describe_contributions
from instructjax.report.comparison import ModelSection, analyze_scores, compare_models
from instructjax.report.numbers import show_number, show_tick
from instructjax.report.outline import make_outline, to_latex, to_markdown
from instructjax.report.results import Results, read_atom_divergence, read_recipe
from instructjax.report.scores import CellScores, pick_scores
from instructjax.report.sections import (
    Chip,
    GridCell,
    LeakSection,
    TrackItem,
    describe_leaks,
    list_advice,
    list_answers,
    list_gaps,
    list_worst,
    make_grid,
    say_missing,
    warn_of_leaks,
    warn_of_words,
)
from instructjax.report.tables import Table
from instructjax.report.texts import shorten
from instructjax.report.tracks import Scale, make_scale
from instructjax.report.variance import VarianceSection, describe_variance
from instructjax.report.wording import WordingSection, describe_wording
from instructjax.scoring.metadata import installed_version

Spell = Callable[[Sequence[int]], list[str]]
_NO_BREAK = "\u00a0"
_NO_GAPS = "No gap can be measured between the cells that have scores."
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values under a heading."""

    name: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Page:
    """All that a report says. In a notebook it shows itself.

    Attributes:
      analysis: of the model that the verdict is about.
      scores: that it is made of.
      headline, numbers: the verdict in words, with the leaks it suffers from, and its numbers.
      missing: which scores are not in them, and which tasks are not known; "" where all are.
      others: see the functions that make them; None or empty where there is nothing to show.
    """

    title: str
    model: str
    metric: str
    version: str
    weights: str
    confidence: str
    epsilon: float | None
    smallest_gap: float
    num_scores: int
    analysis: Analysis
    scores: CellScores
    better: str
    headline: str
    numbers: str
    missing: str
    answers: list[Chip]
    cells: list[GridCell]
    gaps: list[TrackItem]
    gap_scale: Scale
    more: list[str]
    worst: list[Table]
    wording: WordingSection | None
    variance: VarianceSection | None
    contributions: ContributionSection | None
    models: ModelSection | None
    leaks: LeakSection | None
    facts: list[Facts]
    command: str

    @property
    def verdict(self) -> str:
        """The headline with its numbers."""
        return f"{self.headline}: {self.numbers}" if self.numbers else self.headline

    def to_html(self) -> str:
        """The page, with all that it needs in it; texts of the data are only ever text."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

        environment = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["number"] = show_number
        environment.filters["tick"] = show_tick
        environment.filters["thousands"] = "{:,}".format
        style = (_TEMPLATES / "style.css").read_text("utf-8")
        script = (_TEMPLATES / "page.js").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return environment.get_template("page.html").render(
            page=self,
            style=Markup(style),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
        )

    def tables(self) -> list[Table]:
        """All numbers of the page as tables."""
        return [table for section in make_outline(self) for table in section.tables]

    def to_markdown(self) -> str:
        """Verdict, sentences and tables as Markdown."""
        return to_markdown(self._lead(), make_outline(self))

    def to_latex(self) -> str:
        """The same as LaTeX (package booktabs)."""
        return to_latex(self._lead(), make_outline(self))

    def _lead(self) -> list[str]:
        verdict = self.verdict[0].upper() + self.verdict[1:]
        return [verdict, *filter(None, [self.missing])]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Writes the page (.html) or what it says (.md, .tex), whole or not at all.

        Raises:
          UsageError: another suffix, or an existing file without `overwrite`.
        """
        from instructjax.scoring.tables.disk import write_whole

        path = check_out(Path(path), overwrite=overwrite)
        make = {".html": self.to_html, ".md": self.to_markdown, ".tex": self.to_latex}
        text = make[path.suffix.lower()]()
        write_whole(path, text.encode("utf-8", "backslashreplace").decode())
        return path

    def save_figures(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Draws grid, gaps and variance as SVG and PNG into a folder.

        Raises:
          UsageError: matplotlib is not installed.
        """
        from instructjax.report.figures import save_figures

        return save_figures(self, Path(folder))

    def _repr_html_(self) -> str:
        # A frame of its own: its style and a notebook's do not meet, and no script gets out.
        page = html.escape(self.to_html(), quote=True)
        style = "width:100%;height:720px;border:1px solid #8884;border-radius:8px"
        return (
            f'<iframe sandbox="allow-scripts" style="{style}" title="report" srcdoc="{page}">'
            "</iframe>"
        )

    def __repr__(self) -> str:
        return f"Page({self.verdict.replace(_NO_BREAK, ' ')!r})"


def check_out(path: Path, *, overwrite: bool) -> Path:
    """Checks that a report can be written there.

    Raises:
      UsageError: another suffix, a folder, or an existing file without `overwrite`.
    """
    if path.suffix.lower() not in (".html", ".md", ".tex"):
        raise UsageError(
            f"the suffix {path.suffix!r} is not one that is written",
            file=path,
            remedy="end the name in .html, .md or .tex",
        )
    if path.is_dir():
        raise UsageError("is a folder", file=path, remedy="give a file name")
    if path.exists() and not overwrite:
        raise UsageError(
            "exists already", file=path, remedy="give another name, or replace it with --overwrite"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_page(
    results: Results,
    *,
    model: str | None = None,
    metric: str | None = None,
    weights: Literal["micro", "macro"] = "micro",
    epsilon: float | None = None,
    smallest_gap: float = 0.05,
    better: Better | None = None,
    title: str = "At which level does it generalize?",
    command: str = "",
    spell: Spell | None = None,
) -> Page:
    """Analyses results and puts down what there is to say.

    Args:
      results: what `read_results` gave.
      model, metric: what the verdict is about; by default the first there is.
      weights: "micro" lets all scores count alike, "macro" all tasks.
      epsilon: a threshold for the means.
      smallest_gap: the smallest gap that matters, in units of the metric.
      better: whether a "higher" or a "lower" value of the metric is better; needed where it is a
        metric of your own.
      title: of the page.
      command: that made it.
      spell: makes texts of token ids, for the heat maps; without it ids are shown.

    Raises:
      UsageError: no such model or metric, rows without cells, a metric of which it is not known
        what is better, or an option that means nothing.
    """
    model = results.models[0] if model is None else model
    metric = results.metrics[0] if metric is None else metric
    scores = pick_scores(results, model, metric, better)
    options: Mapping[str, Any] = {
        "weights": weights,
        "threshold": epsilon,
        "smallest_gap": smallest_gap,
        "better": scores.better,
        "recipe": read_recipe(results),
        "atom_divergence": read_atom_divergence(results),
    }
    analysis = analyze_scores(scores, options)
    gaps = list_gaps(analysis)
    leaks = describe_leaks(results.split, results.leaks)
    ends = [end for gap in gaps for end in (gap.low, gap.high)]
    return Page(
        title=shorten(title, 120),
        model=shorten(model, 120),
        metric=shorten(metric, 60),
        version=installed_version(),
        weights=weights,
        confidence=f"{100 * analysis.confidence:.0f}%",
        epsilon=epsilon,
        smallest_gap=smallest_gap,
        num_scores=len(scores.value),
        analysis=analysis,
        scores=scores,
        better=scores.better,
        headline=analysis.headline
        + warn_of_words(options["atom_divergence"])
        + warn_of_leaks(leaks),
        numbers=", ".join(analysis.numbers).replace(" +- ", "\u00a0±\u00a0").replace(" -", " −"),
        missing=" ".join(
            filter(
                None,
                (
                    say_missing(
                        scores.missing,
                        analysis.words.cells,
                        analysis.counts.tolist(),
                        scores.left_out,
                    ),
                    scores.say_unnamed(),
                ),
            )
        ),
        answers=list_answers(analysis),
        cells=make_grid(analysis, scores.missing),
        gaps=gaps,
        gap_scale=make_scale(ends, include=(0.0, smallest_gap)),
        more=list_advice(analysis) if gaps else [_NO_GAPS],
        worst=list_worst(scores, results.texts),
        wording=describe_wording(scores, results.texts),
        variance=describe_variance(scores),
        contributions=describe_contributions(results, scores, spell),
        models=compare_models(results, metric, options, model),
        leaks=leaks,
        facts=_list_facts(results, scores, options),
        command=shorten(command, 2000),
    )


def _list_facts(results: Results, scores: CellScores, options: Mapping[str, Any]) -> list[Facts]:
    """Fingerprints, options and versions."""
    about = {
        "model": shorten(scores.model),
        "metric": shorten(scores.metric),
        "scores used": f"{len(scores.value):,}",
        "scores without a value": f"{sum(sum(r.values()) for r in scores.missing):,}",
        "rows without a cell": f"{scores.left_out:,}",
        **{
            name.replace("_", " "): str(value)
            for name, value in options.items()
            if name not in ("recipe", "atom_divergence") and value is not None
        },
        "instructjax": installed_version(),
        "Python": platform.python_version(),
    }
    facts = [Facts(name="This report", values=tuple(about.items()))]
    if results.split is not None:
        split = {
            name: results.split[name]
            for name in ("instructjax", "preset", "rows", "fingerprint")
            if name in results.split
        } | dict(results.split["recipe"])
        if isinstance(told := results.split.get("compositional"), Mapping):
            split |= {name.replace("_", " "): value for name, value in told.items()}
        facts.append(Facts(name="Split", values=_as_texts(split)))
    for file in results.files:
        values = {"SHA-256": file.sha256, **file.metadata}
        facts.append(Facts(name=shorten(file.name, 120), values=_as_texts(values)))
    return facts


def _as_texts(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((shorten(str(k), 80), shorten(str(v), 400)) for k, v in values.items())
