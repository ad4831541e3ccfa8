"""Predictions that are given in Python, by the place of their example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructjax.data.example import Example
from instructjax.errors import UsageError
from instructjax.evaluation.plan import name_example
from instructjax.evaluation.stream import FindPredictions
from instructjax.evaluation.written import Written, to_written
from instructjax.sampling.result import Samples
from instructjax.sampling.rows import SampledRow

Texts = str | Sequence[str | Sequence[str]] | Samples
_REMEDY = "give one text, or one list of samples, an example"


def find_given(
    predictions: Any, names: Iterable[str], rows: Sequence[Example]
) -> dict[str, FindPredictions]:
    """What finds the predictions of each model; nothing where none are given.

    Raises:
      UsageError: they are no texts, not those of these examples, or not of all models.
    """
    if predictions is None:
        return {}
    names = list(names)
    by_name = predictions if isinstance(predictions, Mapping) else None
    if by_name is None and len(names) > 1:
        raise UsageError(
            "there are several models and one list of predictions",
            remedy="give a dict of model names and lists",
        )
    texts_of = {names[0]: predictions} if by_name is None else by_name
    if missing := [name for name in names if name not in texts_of]:
        raise UsageError(f"there are no predictions of {missing[0]}", remedy="give all models'")
    return {name: _by_place(texts_of[name], rows, name) for name in names}


def _by_place(texts: Any, rows: Sequence[Example], name: str) -> FindPredictions:
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise UsageError(f"predictions of {name} are {texts!r:.80}", remedy=_REMEDY)
    found = _group(texts, rows, name) if isinstance(texts, Samples) else list(texts)
    if len(found) != len(rows):
        raise UsageError(
            f"there are {len(found)} predictions of {name} for {len(rows)} examples",
            remedy=_REMEDY,
        )
    written = [
        _to_written(value, name_example(example, row))
        for row, (value, example) in enumerate(zip(found, rows, strict=True))
    ]

    def find(example: Example, row: int) -> Sequence[Written]:
        return written[row]

    return find


def _group(samples: Samples, rows: Sequence[Example], name: str) -> list[list[SampledRow]]:
    """Samples by example, in the order of the examples."""
    groups: list[list[SampledRow]] = []
    for row in samples:
        last = groups[-1][-1] if groups else None
        if last is None or row.id != last.id or row.sample <= last.sample:
            groups.append([])
        groups[-1].append(row)
    wanted = [name_example(example, row) for row, example in enumerate(rows)]
    if len(groups) == len(wanted):
        for group, one in zip(groups, wanted, strict=True):
            if group[0].id != one:
                raise UsageError(
                    f"the samples of {name} are of {group[0].id} where the example is {one}",
                    remedy="give samples of these examples, in their order",
                )
    return groups


def _to_written(value: object, row: str) -> tuple[Written, ...]:
    if isinstance(value, str | SampledRow):
        return (_to_one(value, row),)
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return tuple(_to_one(one, row) for one in value)
    raise _make_error(value, row)


def _to_one(value: object, row: str) -> Written:
    if isinstance(value, SampledRow):
        return to_written(value)
    if isinstance(value, str):
        return Written(text=str(value))
    raise _make_error(value, row)


def _make_error(value: object, row: str) -> UsageError:
    return UsageError(f"its prediction is {value!r:.80}, no text", row=row, remedy=_REMEDY)
