"""A metric of the user's own: a function of a prediction, its references and its example."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from instructjax.errors import DataError, UsageError
from instructjax.evaluation.metrics import Case, Metric, Value, measure_text


def load_metric(spec: str) -> Metric:
    """The metric `module:function`, found as `python -m` would find it: here, then where installed.

    The function takes a prediction, a list of references and the example, and returns a number (or
    True, False)::

        def starts_alike(prediction: str, references: list[str], example: ij.Example) -> float:
            return float(any(prediction[:1] == reference[:1] for reference in references))

    It is asked for rows without references too, with an empty list; `example.extra` has the data
    row's further columns. Its name in the table is `spec`. Where it raises, or returns what is no
    finite number, the row has no value of it.

    Raises:
      UsageError: the module cannot be imported, or the function is not in it.

    >>> load_metric("operator:eq").name
    'operator:eq'
    """
    module_name, _, name = spec.partition(":")
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the module of the metric {spec!r} cannot be imported "
            f"({type(error).__name__}: {error})",
            remedy="run in the folder that it is in, or install it",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, name, None) if name else None
    if not callable(function):
        raise UsageError(
            f"there is no function {name!r} in {module_name} ({getattr(module, '__file__', '')})",
            remedy="write MODULE:FUNCTION",
        )
    file = getattr(module, "__file__", None)
    return dataclasses.replace(make_metric(function, spec), source=Path(file) if file else None)


def make_metric(function: Callable[..., Any], name: str) -> Metric:
    """The metric that a function is; see `load_metric`.

    >>> from instructjax.data import Example
    >>> case = Case(example=Example(), name="a", predictions=("Yes",))
    >>> make_metric(lambda prediction, references, example: len(prediction), "length").measure(case)
    [Value(metric='length', value=3.0, num_references=0, status='ok')]
    """

    def measure(case: Case) -> list[Value]:
        def compare(prediction: str, references: Any) -> float:
            return _call(function, name, case, prediction)

        if not case.predictions:
            return measure_text(case, name, compare)
        values = [compare(text, ()) for text in case.predictions]
        many = f"samples={len(values)}" if len(values) > 1 else "ok"
        mean = math.fsum(values) / len(values)
        count = len(case.references)
        return [Value(metric=name, value=mean, num_references=count, status=many)]

    return Metric(name=name, reads="text", measure=measure)


def _call(function: Callable[..., Any], name: str, case: Case, prediction: str) -> float:
    file, row = case.example.place or (None, case.name)
    try:
        value = function(prediction, list(case.references), case.example)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the metric {name} failed ({type(error).__name__}: {error})",
            file=file,
            row=row,
            remedy="mend the function",
        ) from error
    try:
        number = float(value)
    except Exception:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"the metric {name} gave {_show(value)}",
            file=file,
            row=row,
            remedy="return a finite number",
        )
    return number


def _show(value: object) -> str:
    """What a function gave, in few characters, even if Python refuses to write it out."""
    try:
        text = repr(value)
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
