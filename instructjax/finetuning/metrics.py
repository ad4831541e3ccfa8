"""Where the numbers of a run go: JSONL always, TensorBoard and Weights & Biases by choice."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.finetuning.config import FinetuneConfig
from instructjax.scoring.tables.disk import write_whole


@runtime_checkable
class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, in order of steps.

    Args:
      path: the file.
      step: what an earlier run wrote of later steps is dropped: they are done again.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        kept = [line for line in _read_lines(path) if _step_of(line) <= step]
        try:
            write_whole(path, "".join(kept))
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._blame(error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        try:
            self._stream.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise self._blame(error) from error

    def close(self) -> None:
        """Ends the file."""
        self._stream.close()

    def _blame(self, error: OSError) -> DataError:
        return DataError(
            f"metrics cannot be written ({error.strerror or error})",
            file=self._path,
            remedy=f"{remedy_for_writing(error)} and run the same command again",
        )


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, *, step: int) -> None:
        module = import_optional("tensorboardX", option="--tensorboard", package="tensorboardX")
        self._writer = module.SummaryWriter(os.fspath(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds every number under its name, nested ones as a/b."""
        for name, value in flatten(values):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the files."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, resumed under the id that the folder of the run has."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        module = import_optional("wandb", option="--wandb", package="wandb")
        file = folder / "wandb_id"
        if not file.exists():
            write_whole(file, module.util.generate_id())
        self._run = module.init(
            project=project,
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            dir=os.fspath(folder),
            config=dict(config),
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs every number under its name, nested ones as a/b."""
        self._run.log(dict(flatten(values)), step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def open_sinks(config: FinetuneConfig, step: int, described: Mapping[str, str]) -> list[Sink]:
    """Those that a configuration asks for, to go on after a step (-1 for none).

    Raises:
      UsageError: a package that one of them needs is not there.
    """
    # Those that may not be there come first: nothing is open yet if they are not.
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(config.out / "tensorboard", step=step))
    if config.wandb is not None:
        sinks.append(Wandb(config.wandb, config.out, described))
    return [JsonLines(config.out / "metrics.jsonl", step=step), *sinks]


def import_optional(name: str, *, option: str, package: str) -> Any:
    """A module that an option needs.

    Raises:
      UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            f"{option} needs the package {package}",
            remedy=f"run `pip install {package}`, or leave the option out; metrics.jsonl is "
            "written in any case",
        ) from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name, nested names joined with "/".

    >>> list(flatten({"loss": 1.0, "held_out": {"a": {"b": 2.0}}}))
    [('loss', 1.0), ('held_out/a/b', 2.0)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", float(value)


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            return list(stream)
    except FileNotFoundError:
        return []


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the end of a line that was being written
