"""Which verifiable constraints a response holds, strictly and loosely."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from instructjax.errors import DataError
from instructjax.evaluation.ifeval.kinds import UNCHECKED, bind

COLUMNS = ("instruction_id_list", "kwargs")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The verifiable constraints of one row.

    Attributes:
      kinds: their names, in order.
      checks: of those that can be checked, functions of the response.
      unchecked: names of those that cannot.
    """

    kinds: tuple[str, ...]
    checks: tuple[Callable[[str], bool], ...]
    unchecked: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.checks)


def read_constraints(row: Mapping[str, Any], name: str) -> Constraints | None:
    """The constraints of a data row, or None where it has none.

    Args:
      row: with IFEval's columns `instruction_id_list`, a list of kinds, and `kwargs`, a list of
        their arguments (or either as JSON text, as CSV files hold lists).
      name: the row's id, to name in messages.

    Raises:
      DataError: the columns are not that; see `bind`.

    >>> row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    >>> read_constraints(row, "a").kinds
    ('punctuation:no_comma',)
    """
    kinds, arguments = (_parse(row.get(column), column, name) for column in COLUMNS)
    if not kinds:
        return None
    if arguments is None:
        arguments = [{}] * len(kinds)
    if len(arguments) != len(kinds):
        raise DataError(
            f"there are {len(kinds)} constraints and arguments for {len(arguments)}",
            row=name,
            remedy="give `kwargs` an object for each of `instruction_id_list`",
        )
    checks = []
    for kind, given in zip(kinds, arguments, strict=True):
        if kind in UNCHECKED:
            continue
        if given is not None and not isinstance(given, Mapping):
            raise DataError(
                f"arguments of the constraint {kind!r:.80} are no object",
                row=name,
                remedy="give `kwargs` an object for each of `instruction_id_list`",
            )
        checks.append(bind(kind, given or {}, name))
    unchecked = tuple(kind for kind in kinds if kind in UNCHECKED)
    return Constraints(kinds=tuple(kinds), checks=tuple(checks), unchecked=unchecked)


def follow_strict(response: str, constraints: Constraints) -> list[bool]:
    """Whether the response holds each constraint; an empty one holds none.

    >>> row = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"]}
    >>> follow_strict("No.", read_constraints(row, "a"))
    [True, False]
    """
    return [bool(response.strip()) and check(response) for check in constraints.checks]


def follow_loose(response: str, constraints: Constraints) -> list[bool]:
    """Whether the response, or one of its `relax` forms, holds each constraint.

    >>> row = {"instruction_id_list": ["detectable_format:json_format"]}
    >>> follow_loose("Here it is:\\n[1]", read_constraints(row, "a"))
    [True]
    """
    forms = [form for form in relax(response) if form.strip()]
    return [any(check(form) for form in forms) for check in constraints.checks]


def relax(response: str) -> list[str]:
    """Its eight forms: with or without the first line, the last line, and all asterisks.

    >>> relax("a\\n*b*\\nc")
    ['a\\n*b*\\nc', '*b*\\nc', 'a\\n*b*', '*b*', 'a\\nb\\nc', 'b\\nc', 'a\\nb', 'b']
    """
    lines = response.split("\n")
    parts = [lines[1:], lines[:-1], lines[1:-1]]
    forms = [response, *("\n".join(part).strip() for part in parts)]
    return forms + [form.replace("*", "") for form in forms]


def _parse(value: Any, column: str, name: str) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            value = {}
    if value is None:
        return None
    listed = isinstance(value, list | tuple)
    if not listed or (column == "instruction_id_list" and not all(map(_is_str, value))):
        wanted = "constraint names" if column == "instruction_id_list" else "objects"
        raise DataError(
            f"`{column}` is no list of {wanted}",
            row=name,
            remedy='write for example ["punctuation:no_comma"] and [{}]',
        )
    return list(value)


def _is_str(value: Any) -> bool:
    return isinstance(value, str)
