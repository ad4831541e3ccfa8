"""`instructjax finetune [CONFIG.toml] --option ...`: its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from instructjax.cli.process_options import ProcessOptions
from instructjax.errors import UsageError
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config


@dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneConfig, ProcessOptions):
    """Maximize the sum of log Pr(y | c, z) over data: supervised instruction fine-tuning.

    Options come from a TOML file, from flags, or both: a flag counts more. Everything is kept in
    the folder OUT: the configuration as it was understood, metrics.jsonl, checkpoints, rejected
    rows, and at the end a Hugging Face folder OUT/model. A run that is stopped, in whatever way,
    goes on with the same command, and ends with the same parameters bit for bit.
    """

    STOPS_TOGETHER: ClassVar[bool] = True
    EXAMPLE: ClassVar[str] = "instructjax finetune config.toml --learning-rate 1e-4"

    config: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG]")] = None
    """A TOML file with options under their names, such as learning_rate = 1e-4."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.finetune_run import run_finetune

        return run_finetune(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return f"what {self.out} holds is kept; the same command goes on from there"


def find_defaults(args: Sequence[str]) -> dict[str, Any]:
    """What the TOML file of a command line gives; {} without one.

    Args:
      args: the words after "finetune".

    Raises:
      InstructJaxError: the file cannot be used.
    """
    if not args or args[0].startswith("-"):
        return {}
    return {**read_config(args[0]), "config": Path(args[0])}


def check_config_first(verb: object, given: dict[str, Any]) -> None:
    """Refuses a TOML file that came too late to be read.

    Raises:
      UsageError: it is not the first word.
    """
    if isinstance(verb, Finetune) and verb.config != given.get("config"):
        raise UsageError(
            "the configuration file must come first",
            file=verb.config,
            remedy=f"write instructjax finetune {verb.config} and then the options",
        )


def with_defaults(given: dict[str, Any]) -> Any:
    """A `Finetune` with some fields given, for the parser to fill up."""
    # Required ones may come from flags; what is complete is checked when the parser makes it.
    made = object.__new__(Finetune)
    for name, field in Finetune.__dataclass_fields__.items():
        missing = name in ("data", "out")
        value = given.get(name, tyro.MISSING if missing else field.default)
        object.__setattr__(made, name, value)
    return made
