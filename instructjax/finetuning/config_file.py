"""A run's configuration as a TOML file: read strictly, written so that it can be read again."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

from instructjax.errors import DataError, UsageError
from instructjax.finetuning.config import FinetuneConfig, NotOfType, as_type


def read_config(file: str | Path) -> dict[str, Any]:
    """The fields of `FinetuneConfig` that a TOML file gives, in their types.

    Keys are the names of fields, with "_" or "-". Paths are relative to the current folder, as
    they are on a command line. "none" stands for no value.

    Raises:
      UsageError: no such file, an unknown key (it names the nearest one), or a wrong value.
      DataError: the file is no TOML.
    """
    file = Path(file)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})", file=file, remedy="give a TOML file"
        ) from None
    except ValueError as error:
        raise DataError(f"is no TOML: {error}", file=file, remedy="mend this place") from None
    hints = get_type_hints(FinetuneConfig)
    fields = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UsageError(f"there is no option {key!r}", file=file, remedy=_suggest(name, hints))
        if name in fields:
            raise UsageError(f"{name!r} comes twice", file=file, remedy="write it once")
        try:
            fields[name] = as_type(value, hints[name])
        except NotOfType as wrong:
            raise UsageError(f"{key} is {value!r:.80}", file=file, remedy=f"give {wrong}") from None
    return fields


def write_config(config: FinetuneConfig) -> str:
    """The text of a TOML file that `read_config` reads to the same configuration.

    >>> text = write_config(FinetuneConfig(data=(Path("a.jsonl"),), out=Path("run")))
    >>> text.splitlines()[0]
    'data = ["a.jsonl"]'
    >>> tomllib.loads(text)["clip_norm"]
    1.0
    """
    lines = []
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    # A file that repeats a run must not drop what the run has left.
    for name in [name for name in _in_order() if name != "overwrite"]:
        value = getattr(config, name)
        if value is None:
            if defaults[name] is not None:
                lines.append(f'{name} = "none"')
            continue
        value = [*map(_plain, value)] if isinstance(value, tuple) else _plain(value)
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _in_order() -> list[str]:
    """Names of the fields as `config.py` lists them, data first."""
    bases = reversed(FinetuneConfig.__mro__[1:-1])
    return [name for base in bases for name in base.__annotations__]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"did you mean {near[0]!r}? `instructjax finetune --help` lists all"
