"""The metrics by name: what each needs of a response, and the values that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.evaluation.answers import exact_match, token_f1
from instructjax.evaluation.ifeval.verify import Constraints, follow_loose, follow_strict
from instructjax.evaluation.overlap import check_installed, chrf, rouge_l
from instructjax.scoring.ranking.ranked_example import RankedExample
from instructjax.scoring.rows import ScoredRow

IFEVAL = tuple(
    f"ifeval_{level}_{how}" for level in ("prompt", "instruction") for how in ("strict", "loose")
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One example under one model, with all that a metric may look at.

    Attributes:
      example: the data row.
      name: its id, or "row N".
      references: y that count as right, as text.
      scores: log Pr of those, where the metrics ask for scores.
      ranking: of all candidates, where the right one of several is known.
      predictions: what the model wrote: one text, several samples, or none.
      flags: what to know of these texts; see `Written`.
      constraints: the verifiable ones of the row, if it has any.
    """

    example: Example
    name: str
    references: tuple[str, ...] = ()
    scores: tuple[ScoredRow, ...] = ()
    ranking: RankedExample | None = None
    predictions: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    constraints: Constraints | None = None


@dataclass(frozen=True, kw_only=True)
class Value:
    """One cell of the table: P(c, z, y), what it is the best of, and what to know of it."""

    metric: str
    value: float | None
    num_references: int
    status: str = "ok"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: its name as it is asked for, what it reads, and a pure function of a case.

    One of the user's own comes from a file, `source`.
    """

    name: str
    reads: Literal["scores", "text"]
    measure: Callable[[Case], list[Value]]
    source: Path | None = None


def measure_log_prob(case: Case, *, per_token: bool = False) -> list[Value]:
    """log Pr(y | c, z) of the likeliest reference: nats, or nats a token."""
    name = "log_prob_per_token" if per_token else "log_prob"
    if not case.scores:
        return [Value(metric=name, value=None, num_references=0, status="no_reference")]
    best = max(case.scores, key=lambda row: _comparable(getattr(row, name)))
    value = getattr(best, name)
    return [
        Value(
            metric=name,
            value=value if math.isfinite(value) else None,
            num_references=len(case.scores),
            status=best.status,
        )
    ]


def measure_rank_accuracy(case: Case) -> list[Value]:
    """1 if the best of the candidates is the right one; of equal ones the first is the best."""
    ranking = case.ranking
    if ranking is None or ranking.correct is None:
        return [Value(metric="rank_accuracy", value=None, num_references=0, status="no_answer")]
    flags = dict.fromkeys(flag for text in ranking.status for flag in text.split(","))
    flags.pop("ok", None)
    status = ",".join([*flags, *(["tie"] if ranking.tie else [])]) or "ok"
    value = float(ranking.correct) if "not_finite" not in flags else None
    return [Value(metric="rank_accuracy", value=value, num_references=1, status=status)]


def measure_text(
    case: Case, name: str, compare: Callable[[str, Sequence[str]], float]
) -> list[Value]:
    """A metric of a prediction and its references; of several samples, their mean."""
    count = len(case.references)
    if missing := _find_missing(case, needs_reference=True):
        return [Value(metric=name, value=None, num_references=count, status=missing)]
    values = [compare(text, case.references) for text in case.predictions]
    return [_mean(name, values, count)]


def measure_ifeval(case: Case) -> list[Value]:
    """Strict and loose, whether all constraints hold, and the share of them that do.

    Where one of the row's constraints cannot be checked, whether all hold is not known.
    """
    constraints = case.constraints
    if constraints is None:
        status, count = "no_constraints", 0
    else:
        status, count = _find_missing(case, needs_reference=False), len(constraints)
    if status or constraints is None:
        return [Value(metric=n, value=None, num_references=count, status=status) for n in IFEVAL]
    values = []
    unchecked = ",".join(f"unchecked={kind}" for kind in dict.fromkeys(constraints.unchecked))
    for name in IFEVAL:
        follow = follow_strict if name.endswith("strict") else follow_loose
        by_prompt = "prompt" in name
        if not count or (by_prompt and unchecked):
            values.append(Value(metric=name, value=None, num_references=count, status=unchecked))
            continue
        held = [follow(text, constraints) for text in case.predictions]
        shares = [float(all(x)) if by_prompt else sum(x) / count for x in held]
        values.append(_mean(name, shares, count, unchecked))
    return values


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="log_prob", reads="scores", measure=measure_log_prob),
        Metric(
            name="log_prob_per_token",
            reads="scores",
            measure=partial(measure_log_prob, per_token=True),
        ),
        Metric(name="rank_accuracy", reads="scores", measure=measure_rank_accuracy),
        *(
            Metric(
                name=name,
                reads="text",
                measure=partial(measure_text, name=name, compare=compare),
            )
            for name, compare in (
                ("exact_match", exact_match),
                ("f1", token_f1),
                ("rouge_l", rouge_l),
                ("chrf", chrf),
            )
        ),
        Metric(name="ifeval", reads="text", measure=measure_ifeval),
    )
}


def find_metrics(names: str | Metric | Callable[..., Any] | Iterable[Any]) -> tuple[Metric, ...]:
    """The metrics asked for, in order.

    Args:
      names: names with commas between them, one metric, or a list: those of `METRICS`,
        `module:function`, or in Python a function or a `Metric` itself; see `user_metric`.

    Raises:
      UsageError: there is none, an unknown one, one twice, or a library that it needs is missing.

    >>> [metric.name for metric in find_metrics("log_prob, f1")]
    ['log_prob', 'f1']
    """
    from instructjax.evaluation.user_metric import load_metric, make_metric

    if isinstance(names, str):
        asked: list[Any] = [name.strip() for name in names.split(",")]
    elif isinstance(names, Iterable):
        asked = [*names]
    else:
        asked = [names]
    found: list[Metric] = []
    for name in asked:
        if isinstance(name, Metric):
            found.append(name)
        elif callable(name):
            found.append(make_metric(name, getattr(name, "__name__", type(name).__name__)))
        elif isinstance(name, str) and name in METRICS:
            check_installed(name)
            found.append(METRICS[name])
        elif isinstance(name, str) and ":" in name:
            found.append(load_metric(name))
        else:
            raise UsageError(
                f"there is no metric {name!r}",
                remedy=f"choose of {', '.join(METRICS)}, or give a function as MODULE:FUNCTION",
            )
    named = [metric.name for metric in found]
    if not found or len(set(named)) < len(named):
        raise UsageError(
            f"metrics are {', '.join(named) or 'none'}", remedy="give one or several, each once"
        )
    return tuple(found)


def columns_of(metric: Metric) -> tuple[str, ...]:
    """The names that a metric has in the table.

    >>> columns_of(METRICS["f1"]), len(columns_of(METRICS["ifeval"]))
    (('f1',), 4)
    """
    return IFEVAL if metric.name == "ifeval" else (metric.name,)


def _find_missing(case: Case, *, needs_reference: bool) -> str:
    missing = ["no_reference"] if needs_reference and not case.references else []
    return ",".join([*missing, *([] if case.predictions else ["no_prediction"])])


def _mean(name: str, values: list[float], count: int, status: str = "") -> Value:
    flags = [*([status] if status else [])]
    if len(values) > 1:
        flags.append(f"samples={len(values)}")
    return Value(
        metric=name,
        value=math.fsum(values) / len(values),
        num_references=count,
        status=",".join(flags) or "ok",
    )


def _comparable(value: float) -> float:
    return -math.inf if math.isnan(value) else value
