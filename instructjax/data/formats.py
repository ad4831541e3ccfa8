"""The shapes that rows come in, how each is recognized, and how it becomes the contract's row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructjax.data.contract import CONTRACT, check_messages
from instructjax.data.rejects import BadRow

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One shape of rows.

    Attributes:
      needs: the columns by which it is known, for a person.
      matches: whether the names of a row's columns are those of this shape.
      convert: makes the contract's row of a row and the stem of its file's name.
      columns: what some of the contract's names are called in this shape.
    """

    needs: str
    matches: Callable[[Collection[str]], bool]
    convert: Callable[[Row, str], dict[str, Any]]
    columns: Mapping[str, str] = field(default_factory=dict)


def detect_format(columns: Collection[str]) -> str | None:
    """Returns the name of the format that has these columns, or None.

    >>> detect_format(["instruction", "context", "response", "category"])
    'dolly'
    >>> detect_format(["question", "answer"])
    """
    return next((name for name, form in FORMATS.items() if form.matches(columns)), None)


def keep_contract(row: Row, stem: str = "") -> dict[str, Any]:
    """Returns the columns of a row that have the contract's names."""
    return {name: row[name] for name in CONTRACT if name in row}


def _first(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _convert_dolly(row: Row, stem: str) -> dict[str, Any]:
    return keep_contract(row) | {"input": row.get("context"), "output": row.get("response")}


def _convert_flan(row: Row, stem: str) -> dict[str, Any]:
    return keep_contract(row) | {
        # The two are one text here; which part of it instructs is not known.
        "instruction": row.get("inputs"),
        "input": None,
        "output": row.get("targets"),
        "task": _first(row, "task", "task_name", "_task_name"),
    }


def _convert_super_natural_instructions(row: Row, stem: str) -> dict[str, Any]:
    definition = _first(row, "Definition", "definition")
    if isinstance(definition, list) and all(isinstance(text, str) for text in definition):
        definition = "\n".join(definition)
    categories = row.get("Categories")
    category = categories[0] if isinstance(categories, list) and categories else categories
    return keep_contract(row) | {
        "instruction": definition,
        "input": _first(row, "input", "inputs"),
        "output": _first(row, "output", "outputs", "targets"),
        "task": _first(row, "task", "task_name") or (stem if "Definition" in row else None),
        "category": _first(row, "category") or category,
    }


def _convert_ifeval(row: Row, stem: str) -> dict[str, Any]:
    return keep_contract(row) | {
        "instruction": row.get("prompt"),
        "id": _first(row, "id", "key"),
    }


def _convert_big_bench(row: Row, stem: str) -> dict[str, Any]:
    scores = row.get("target_scores")
    return keep_contract(row) | {
        # The prefix is what the benchmark puts before every input; the description is about it.
        "instruction": row.get("task_prefix") or row.get("description"),
        "output": list(scores) if isinstance(scores, Mapping) else row.get("target"),
        "answer": row["answer"] if "answer" in row else _find_best(scores),
        "task": _first(row, "task", "name"),
    }


def _find_best(scores: Any) -> int | None:
    """Index of the one response with the highest score; None where several have it."""
    values = list(scores.values()) if isinstance(scores, Mapping) else []
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    best = max(values)
    return values.index(best) if values.count(best) == 1 else None


def _convert_messages(row: Row, stem: str) -> dict[str, Any]:
    name = "messages" if row.get("messages") is not None else "conversations"
    shown = f"`{name}`"
    turns = check_messages(() if row.get(name) is None else row[name], shown)
    if not turns:
        raise BadRow(f"no response: {shown} is empty or null; end it with an assistant turn")
    system = row.get("system")
    if turns[0].role == "system":
        if system not in (None, "", turns[0].content):
            raise BadRow(f"two system turns: `system` and {shown} each have one; keep one")
        system, turns = turns[0].content, turns[1:]
    if not turns or turns[-1].role != "assistant":
        raise BadRow(f"last turn not assistant: {shown} must end with the response; add it")
    if len(turns) < 2 or turns[-2].role != "user":
        raise BadRow(f"no user turn: the turn before the response in {shown} must be the user's")
    if not turns[-1].content:
        raise BadRow(f"no response: the last turn of {shown} is empty; give it a text")
    if not turns[-2].content:
        raise BadRow(f"no instruction and no input: the user's last turn of {shown} is empty")
    return keep_contract(row) | {
        "instruction": turns[-2].content,
        "input": None,
        "output": turns[-1].content,
        "system": system,
        "history": [[turn.role, turn.content] for turn in turns[:-2]],
    }


def _match_contract(columns: Collection[str]) -> bool:
    if "output_ids" in columns and "prompt_ids" in columns:
        return True
    return "output" in columns and ("instruction" in columns or "input" in columns)


def _match_super_natural_instructions(columns: Collection[str]) -> bool:
    return (
        ("Definition" in columns or "definition" in columns)
        and "instruction" not in columns
        and any(name in columns for name in ("output", "outputs", "targets"))
    )


_CONTRACT_NEEDS = "instruction or input, and output (or prompt_ids and output_ids)"

# In the order in which they are tried.
FORMATS: dict[str, Format] = {
    "superni": Format(
        needs="Definition and Instances, or definition, input and outputs",
        matches=_match_super_natural_instructions,
        convert=_convert_super_natural_instructions,
        columns={"instruction": "definition"},
    ),
    "contract": Format(needs=_CONTRACT_NEEDS, matches=_match_contract, convert=keep_contract),
    "alpaca": Format(needs=_CONTRACT_NEEDS, matches=_match_contract, convert=keep_contract),
    "dolly": Format(
        needs="instruction, context and response",
        matches=lambda columns: "response" in columns and "instruction" in columns,
        convert=_convert_dolly,
        columns={"input": "context", "output": "response"},
    ),
    "messages": Format(
        needs="messages or conversations",
        matches=lambda columns: "messages" in columns or "conversations" in columns,
        convert=_convert_messages,
    ),
    "ifeval": Format(
        needs="prompt, instruction_id_list and kwargs",
        matches=lambda columns: "prompt" in columns and "instruction_id_list" in columns,
        convert=_convert_ifeval,
        columns={"instruction": "prompt"},
    ),
    "flan": Format(
        needs="inputs and targets",
        matches=lambda columns: "inputs" in columns and "targets" in columns,
        convert=_convert_flan,
        columns={"instruction": "inputs", "output": "targets"},
    ),
    "bigbench": Format(
        needs="examples, each with input and target or target_scores",
        matches=lambda columns: (
            "input" in columns and ("target" in columns or "target_scores" in columns)
        ),
        convert=_convert_big_bench,
        columns={"output": "target"},
    ),
}
