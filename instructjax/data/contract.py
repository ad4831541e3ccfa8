"""The row of the contract, and the checks that make an `Example` of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from instructjax.data.example import Example, Message
from instructjax.data.rejects import BadRow

NAMES = ("id", "instruction_id", "input_id", "task", "category")
CONTRACT = ("instruction", "input", "output", "system", "history", "prompt_ids", "output_ids")
CONTRACT += ("answer", *NAMES)
_OUTPUTS = ("output", "output_ids")

# Names of roles in chat files (OpenAI's and ShareGPT's) to the three that there are.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def build_example(
    row: Mapping[str, Any],
    *,
    default_id: str,
    columns: Mapping[str, str] | None = None,
    place: tuple[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    needs_output: bool = True,
) -> Example:
    """Makes an `Example` of a row with the contract's columns; others are ignored.

    Null and NaN mean that a column has no value. Texts are kept as they are, character by
    character. Names to group by may be numbers and become text. An `answer` that is no
    whole number and no text is kept as the text of it, unless `columns` says that it was asked for:
    what needs the right response then says that it is none.

    Args:
      row: values by the contract's names.
      default_id: the id where the row has none.
      columns: what the contract's names are called in the file, to say in a reason.
      place: file and row, for the example to carry.
      extra: further columns, for the example to carry.
      needs_output: whether a row without a response cannot be used; an empty one is none.

    Raises:
      BadRow: the row cannot be used.

    >>> build_example({"instruction": "Add.", "output": ["2", "3"]}, default_id="a:1").output
    ('2', '3')
    """
    values = {name: value for name in CONTRACT if not _is_missing(value := row.get(name))}
    shown = {name: f"`{(columns or {}).get(name, name)}`" for name in CONTRACT}
    if not needs_output:
        values = {k: v for k, v in values.items() if k not in _OUTPUTS or v not in ("", [], ())}
    ids = _check_ids(values, shown, needs_output)
    texts: dict[str, Any] = {
        name: _check_text(values[name], shown[name])
        for name in ("instruction", "input", "system")
        if name in values
    }
    names: dict[str, Any] = {"id": default_id} | _check_names(values, shown)
    output = None
    if "output" in values and not (ids and values["output"] in ("", [])):
        output = _check_output(values["output"], shown["output"])
    if not ids:
        if output is None and needs_output:
            raise BadRow(f"no response: {shown['output']} is missing or null; give it a text")
        if not texts.get("instruction") and not texts.get("input"):
            both = f"{shown['instruction']} and {shown['input']}"
            raise BadRow(f"no instruction and no input: {both} are missing or empty; give one")
    return Example(
        **texts,
        **ids,
        output=output,
        history=check_messages(values.get("history", ()), shown["history"]),
        answer=_check_answer(values.get("answer"), shown["answer"], "answer" in (columns or {})),
        **names,
        extra=extra or {},
        place=place,
    )


def check_messages(turns: object, shown: str) -> tuple[Message, ...]:
    """Makes messages of a list of {"role", "content"}, {"from", "value"} or [role, content].

    Raises:
      BadRow: it is not such a list, or a role is unknown.

    >>> check_messages([["human", "Hi"]], "`history`")
    (Message(role='user', content='Hi'),)
    """
    if not _is_list(turns):
        raise BadRow(f"wrong type: {shown} is {_name_type(turns)}; it must be a list of turns")
    return tuple(_check_turn(turn, f"turn {n} of {shown}") for n, turn in enumerate(turns, 1))


def _check_turn(turn: object, shown: str) -> Message:
    if isinstance(turn, Mapping):
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
    elif _is_list(turn) and len(turn) == 2:
        role, content = turn
    else:
        raise BadRow(
            f"wrong type: {shown} is {_name_type(turn)}; write it as"
            ' {"role": ..., "content": ...} or [role, content]'
        )
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise BadRow(f"unknown role: {shown} has the role {role!r:.80}; use one of {known}")
    return Message(role=ROLES[role], content=_check_text(content, shown))  # type: ignore[arg-type]


def _check_text(value: object, shown: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"wrong type: {shown} is {_name_type(value)}; it must be text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"U+{ord(value[error.start]):04X} at character {error.start + 1}"
            raise BadRow(
                f"not Unicode: {shown} has half of a surrogate pair, {code}; write the character"
            ) from None
    return value


def _check_output(value: Any, shown: str) -> str | tuple[str, ...]:
    if not _is_list(value):
        if not isinstance(value, str):
            kind = _name_type(value)
            raise BadRow(f"wrong type: {shown} is {kind}; it must be text or a list of texts")
        if not value:
            raise BadRow(f"no response: {shown} is empty; give it a text")
        return _check_text(value, shown)
    if not value:
        raise BadRow(f"no response: {shown} is an empty list; give it a text")
    for place, item in enumerate(value, 1):
        if _is_missing(item) or item == "":
            raise BadRow(f"no response: candidate {place} of {shown} is empty; give it a text")
    return tuple(_check_text(item, f"candidate {n} of {shown}") for n, item in enumerate(value, 1))


def _check_ids(
    values: Mapping[str, Any], shown: Mapping[str, str], needs_output: bool
) -> dict[str, Any]:
    given = [name for name in ("prompt_ids", "output_ids") if name in values]
    if not given:
        return {}
    if given == ["prompt_ids"] and not needs_output:
        prompt = _check_id_list(values["prompt_ids"], shown["prompt_ids"], "no prompt")
        return {"prompt_ids": prompt}
    if len(given) == 1:
        raise BadRow(
            f"half of the token ids: there is {shown[given[0]]} alone; give both"
            f" {shown['prompt_ids']} and {shown['output_ids']}"
        )
    output = values["output_ids"]
    if _is_list(output) and len(output) and all(_is_list(ids) for ids in output):
        checked: Any = tuple(
            _check_id_list(ids, f"candidate {n} of {shown['output_ids']}", "no response")
            for n, ids in enumerate(output, 1)
        )
    else:
        checked = _check_id_list(output, shown["output_ids"], "no response")
    prompt = _check_id_list(values["prompt_ids"], shown["prompt_ids"], "no prompt")
    return {"prompt_ids": prompt, "output_ids": checked}


def _check_id_list(value: Any, shown: str, empty: str) -> tuple[int, ...]:
    if not _is_list(value):
        raise BadRow(f"wrong type: {shown} is {_name_type(value)}; it must be a list of token ids")
    if not value:
        raise BadRow(f"{empty}: {shown} is an empty list; give it token ids")
    for item in value:
        if type(item) is not int or not 0 <= item < 2**31:
            raise BadRow(
                f"wrong type: {shown} holds {item!r:.80}; token ids are whole numbers >= 0"
            )
    return tuple(value)


def _check_answer(value: Any, shown: str, wanted: bool) -> int | str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps, as pandas writes it
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_text(value, shown) or None
    if value is None:
        return None
    if not wanted:
        # Files have columns of this name that mean something else, and can be scored all the same.
        return f"{value!s:.200}"
    raise BadRow(
        f"wrong type: {shown} is {_name_type(value)}; it must be the index or the text of the"
        " right response"
    )


def _check_names(values: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    names = {}
    for name in NAMES:
        value = values.get(name, "")
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            kind = _name_type(value)
            raise BadRow(f"wrong type: {shown[name]} is {kind}; it must be text or a number")
        if value != "":
            names[name] = _check_text(str(value), shown[name])
    return names


def _is_missing(value: object) -> bool:
    # Tables made by pandas write NaN where a column has no value.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _name_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if _is_list(value) else f"of type {type(value).__name__}"
