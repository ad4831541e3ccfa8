"""Which quantized weights are read, and what their configuration says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructjax.models.families.options import Options

_METHODS = ("mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors")
_FORMATS = ("float-quantized", "naive-quantized")


@dataclass(frozen=True, kw_only=True)
class Float8:
    """Weights are stored as float8, and each has scales.

    Attributes:
      block: rows and columns of a matrix that one scale is for; None where the scales' shape tells.
    """

    block: tuple[int, int] | None = None


def read_quantization(values: Mapping[str, Any], file: Path) -> Float8 | None:
    """What a configuration says of float8 weights; None where it says nothing of them.

    Weights are dequantized as they are loaded, and activations are not quantized.

    Args:
      values: what a config.json holds.
      file: that file, for messages.

    Raises:
      ModelError: weights are quantized in a way that is not supported.

    >>> read_quantization({"quantization_config": {"quant_method": "mxfp4"}}, Path("config.json"))
    """
    outer = Options(values, file)
    given = outer.get("quantization_config", {})
    if given == {}:
        return None
    if not isinstance(given, dict):
        raise outer.error("quantization_config", "must be an object")
    options = Options(given, file)
    method = options.get("quant_method")
    if method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise outer.error("quantization_config", f"is not supported, only quant_method {known}")
    if method == "compressed-tensors":
        options.refuse({"format": _FORMATS, "sparsity_config": ({},)})
    options.refuse({"expert_dtype": ("fp8",), "scale_fmt": ("float", "ue8m0")})
    if method == "mxfp4":
        return None
    block = options.get("weight_block_size")
    if block is None:
        left_out = method == "fp8" and "weight_block_size" not in given
        return Float8(block=(128, 128) if left_out else None)
    if not isinstance(block, list | tuple) or len(block) != 2:
        raise options.error("weight_block_size", "must be two whole numbers")
    rows, columns = (Options({"weight_block_size": n}, file) for n in block)
    size = rows.integer("weight_block_size"), columns.integer("weight_block_size")
    return Float8(block=size)
