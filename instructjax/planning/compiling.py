"""A program compiled for devices that need not be there: its memory, or how much it is short of."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from instructjax.errors import InstructJaxError
from instructjax.planning.programs import Program

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = r"(\d+(?:\.\d+)?)([KMGT]?)i?B?"


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """What the compiler says of a program, in bytes a device.

    Attributes:
      arguments: state and batch, as they lie in memory, padding included.
      outputs: of them `reused` bytes lie where arguments did.
      reused: see `outputs`.
      temporaries: at the worst moment.
      code: the program's own.
      text: the optimized program.
      seconds: that lowering and compiling took.
    """

    arguments: float
    outputs: float
    reused: float
    temporaries: float
    code: float
    text: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A program that the compiler refuses since it does not fit.

    Attributes:
      needed: bytes, as the compiler says it. It looks before it places anything, and the whole
        program takes more.
      available: bytes of a device.
      seconds: that lowering and compiling took.
    """

    needed: float
    available: float
    seconds: float


class CompilerError(InstructJaxError):
    """The compiler refuses a program, and not for want of memory."""


# XLA for CPUs dies of a bfloat16 sum over an axis that it splits by itself, in the pass that would
# make it float32 (JAX 0.10). Programs that are only looked at can do without.
_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_disable_hlo_passes": "all-reduce-promotion"}}


def compile_program(program: Program, platform: str) -> Compiled | Overflow:
    """Compiles it; takes minutes for a TPU.

    Args:
      program: what is compiled.
      platform: of the devices that it is for.

    Raises:
      CompilerError: the compiler refuses it for another reason than memory.
    """
    start = time.monotonic()
    lowered = program.lower()
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS.get(platform))
    except jax.errors.JaxRuntimeError as error:
        found = read_overflow(str(error), time.monotonic() - start)
        if found is None:
            reason = str(error).strip().partition("\n")[0]
            remedy = "another --micro-batches, --mesh or --remat may do"
            if "No PTX compilation provider" in reason:
                reason = "it finds no ptxas"
                remedy = "pip install 'instructjax[cuda-compiler]', or nvidia-cuda-nvcc-cu12 alone"
            raise CompilerError(
                f"the {platform} compiler refuses this step: {reason}",
                remedy=f"{remedy}; --compile 0 estimates",
            ) from error
        return found
    stats = compiled.memory_analysis()
    return Compiled(
        arguments=float(stats.argument_size_in_bytes),
        outputs=float(stats.output_size_in_bytes),
        reused=float(stats.alias_size_in_bytes),
        temporaries=float(stats.temp_size_in_bytes),
        code=float(stats.generated_code_size_in_bytes),
        text=compiled.as_text(),
        seconds=time.monotonic() - start,
    )


def read_overflow(message: str, seconds: float = 0.0) -> Overflow | None:
    """The numbers of an error of libtpu's; None if it is another error.

    >>> found = read_overflow("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
    ...     "required for HLO temporaries (28.93G) exceeds available HBM (15.75G).")
    >>> round(found.needed / 2**30, 2), round(found.available / 2**30, 2)
    (28.93, 15.75)
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in (
        # Arguments are among them: with room, such programs have temporaries of a part of this.
        rf"temporaries \({_NUMBER}\) exceeds available HBM \({_NUMBER}\)",
        rf"Used {_NUMBER} of {_NUMBER} hbm",
    ):
        found = re.search(pattern, message)
        if found:
            needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return Overflow(needed=needed, available=available, seconds=seconds)
    return None
