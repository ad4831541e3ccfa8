"""Quantized weights of safetensors files, made floats as they are read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Shaped, UInt8

# The values of a 4-bit float with two bits of exponent and one of mantissa (OCP MX 1.0, E2M1).
_FP4 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])

FLOAT8 = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


def unpack_mxfp4(
    blocks: UInt8[np.ndarray, "*rows groups half"], scales: UInt8[np.ndarray, "*rows groups"]
) -> Float32[np.ndarray, "*rows wide"]:
    """Numbers of 4 bits, two in a byte, the lower half first, a power of two for each group.

    Exact: a value has two significant bits, and a scale is 2 to the power of its byte less 127; a
    byte of 255 stands for NaN (OCP Microscaling Formats 1.0, sections 5.3 and 5.4).

    >>> blocks = np.array([[[0x21, 0xF7]]], np.uint8)
    >>> unpack_mxfp4(blocks, np.array([[128]], np.uint8)).tolist()
    [[1.0, 2.0, 12.0, -12.0]]
    """
    values = np.stack([_FP4[blocks & 15], _FP4[blocks >> 4]], axis=-1)
    powers = np.ldexp(np.float32(1), np.minimum(scales, 254).astype(np.int32) - 127)
    powers = np.where(scales == 255, np.float32(np.nan), powers)
    values = values.reshape(*blocks.shape[:-1], -1) * powers[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def scale_blocks(
    values: Shaped[np.ndarray, "*shape"],
    scales: Shaped[np.ndarray, "*some"],
    block: tuple[int, int],
    start: int = 0,
) -> Float32[np.ndarray, "*shape"]:
    """Float8 times the scale of its block, in float32.

    Args:
      values: rows of a matrix, beginning with row `start`; of a stack of matrices, whole ones.
      scales: one for the whole, or one for each block or for each row of each matrix.
      block: rows and columns of a block.
      start: which row comes first.

    >>> values = np.ones((2, 4), ml_dtypes.float8_e4m3fn)
    >>> scale_blocks(values, np.array([[1.0, 2.0], [3.0, 4.0]]), (2, 2), start=1).tolist()
    [[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]]
    """
    scales = scales.astype(np.float32)
    if scales.size == 1:
        return values.astype(np.float32) * scales.reshape(())
    if scales.ndim < values.ndim:  # one for each row
        scales = scales[..., None]
    rows = np.arange(start, start + values.shape[-2]) // block[0]
    columns = np.arange(values.shape[-1]) // block[1]
    return values.astype(np.float32) * scales[..., rows, :][..., columns]


def block_of(
    shape: tuple[int, ...], grid: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Rows and columns a scale is for, given the shapes of weights and scales; None: no fit.

    >>> block_of((576, 256), (5, 2), (128, 128)), block_of((6, 4), (6, 1), None)
    ((128, 128), (1, 4))
    >>> block_of((6, 4), (6,), (128, 128))
    (1, 4)
    """
    if np.prod(grid) == 1:
        return (max(shape[0], 1), max(shape[-1], 1))
    if len(shape) > 1 and grid == shape[:-1]:
        return (1, shape[-1])
    if len(shape) != len(grid) or len(shape) < 2 or shape[:-2] != grid[:-2]:
        return None
    for rows, columns in ([] if block is None else [block]) + [
        (-(-shape[-2] // grid[-2]), -(-shape[-1] // grid[-1]))
    ]:
        if (-(-shape[-2] // rows), -(-shape[-1] // columns)) == grid[-2:]:
            exact = shape[-2] % rows == 0 and shape[-1] % columns == 0
            if exact or (rows, columns) == block:
                return rows, columns
    return None
