"""Which quantized weights are read, and what their configuration says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.models.families.options import Options

_METHODS = ("mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors")
_FORMATS = ("float-quantized", "naive-quantized")


def read_quantization(values: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """The block of weights that one scale of a float8 matrix is for; None where files tell.

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
    block = options.get("weight_block_size")
    if block is None:
        return (128, 128) if method == "fp8" and "weight_block_size" not in given else None
    if not isinstance(block, list | tuple) or len(block) != 2:
        raise options.error("weight_block_size", "must be two whole numbers")
    rows, columns = (Options({"weight_block_size": n}, file) for n in block)
    return rows.integer("weight_block_size"), columns.integer("weight_block_size")
