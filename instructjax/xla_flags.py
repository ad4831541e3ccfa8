"""What XLA must be told for its sums to be right, and for steps to compile."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import metadata

# Releases of jaxlib in which a CPU may get sums of sums wrong (jax-ml/jax#39103) or crash in them
# (#39257), and what keeps them from it. Others may not know the flag, and end if they are given it.
AFFECTED = ("0.10.2", "0.11.0")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# This pass ends in a failed check of its own, on TPUs (libtpu 0.0.42), where gradients of
# micro-batches are added up.
SKIP = "--xla_disable_hlo_passes"
PASS = "while-loop-all-reduce-code-motion"


def keep_sums_right() -> None:
    """Sets the flag where it is needed; XLA reads it when something is first computed.

    Warns:
      RuntimeWarning: something has been computed before, so it comes too late.
    """
    if _find_jaxlib() not in AFFECTED or not _set(FLAG, "-reduce"):
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            f"jaxlib {_find_jaxlib()} may get sums wrong on CPU, and has computed already: import "
            f"instructjax before that, or set XLA_FLAGS={FLAG}=-reduce",
            RuntimeWarning,
            stacklevel=3,
        )


def skip_failing_pass() -> None:
    """Sets the flag by which steps with micro-batches compile for TPUs, if it is not in use."""
    _set(SKIP, PASS)


def _set(flag: str, value: str) -> bool:
    """Sets a flag of XLA unless it is there; whether it was not."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag in flags:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()
    return True


def _find_jaxlib() -> str | None:
    try:
        return metadata.version("jaxlib")
    except metadata.PackageNotFoundError:
        return None
