"""`instructjax plan MODEL`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Will it fit, how fast, on what? Answered without the hardware and without weights.

    The program that finetune or score would run is compiled for the devices named and read: memory
    by kind, what devices say to each other, and the least time. Nothing is run. For TPUs that takes
    instructjax[tpu], for GPUs instructjax[cuda-compiler]; else it is estimated. Rows are taken to
    be full and all their tokens scored, which is the most that they can cost.
    """

    EXAMPLE: ClassVar[str] = (
        "instructjax plan llama-3.1-8b --topology v5e:16x16 --mesh fsdp=64,tensor=4 --batch 256"
    )

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A known size such as llama-3.1-8b or qwen3-32b, or any model spec: hub id, folder, .gguf
    file, pypi:PACKAGE==VERSION. Only its configuration is read."""
    topology: str
    """CHIP:SHAPE: v4, v5e, v5p, v6e, tpu7x with the torus' shape (v5e:16x16, v5p:2x4x4); a100,
    h100, b200 with GPUs or nodes x GPUs (h100:8, h100:2x8), at most eight a node; or cpu:8,
    virtual devices."""
    task: Literal["finetune", "score"] = "finetune"
    """An optimizer step, or the scores of a batch."""
    slices: int = 1
    """TPU slices of that shape, with the network between them."""
    mesh: str = "fsdp=-1"
    """How the devices are arranged, such as data=2,fsdp=4,tensor=2; -1: what the others leave. Rows
    are split over data, fsdp and expert, their tokens over context, parameters and the optimizer's
    state over fsdp and tensor, experts over expert."""
    batch: int | None = None
    """Rows of a step, all micro-batches together; by default one a device that has rows."""
    length: int = 2048
    """Tokens of a row."""
    micro_batches: int = 1
    """Of a step, one after the other."""
    remat: Literal["none", "layer", "dots"] = "dots"
    """What the backward pass computes again; see finetune."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward and backward pass; what is trained is kept in float32."""
    train: Literal["all", "lora"] = "all"
    """All parameters, or low-rank matrices beside frozen ones."""
    lora_rank: int = 16
    """With --train lora."""
    optimizer: str = "adamw"
    """adamw, adafactor, lion, muon, or any other of optax by its name there."""
    search: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Try meshes, micro-batches and remat policies instead of those given, and rank them."""
    compile: int = 3
    """With --search, how many of the best estimates to compile, 0 for none; without, 0 only
    estimates."""
    json: Path | None = None
    """Write everything to this file as well."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.plan_run import run_plan

        return run_plan(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return "nothing was written"
