"""DeepSeek's matrix that expands keys and values, which GGUF files have in two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32

ReadRows = Callable[[str, int, int], Float32[np.ndarray, "rows ..."]]
Shapes = Mapping[str, tuple[int, ...]]

_KEYS = re.compile(r"(blk\.\d+\.attn_)k_b\.weight")


def join_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes with `attn_kv_b` in the place of `attn_k_b` [H, R, S] and `attn_v_b` [H, V, R].

    >>> join_shapes({"blk.0.attn_k_b.weight": (4, 12, 8), "blk.0.attn_v_b.weight": (4, 10, 12)})
    {'blk.0.attn_kv_b.weight': (72, 12)}
    """
    joined = dict(shapes)
    for name, (heads, rank, still) in _pairs(shapes):
        del joined[f"{name}k_b.weight"]
        value_dim = joined.pop(f"{name}v_b.weight")[1]
        joined[f"{name}kv_b.weight"] = (heads * (still + value_dim), rank)
    return joined


def _pairs(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    found = ((_KEYS.fullmatch(name), shape) for name, shape in shapes.items())
    names = ((match[1], shape) for match, shape in found if match and len(shape) == 3)
    return [(n, s) for n, s in names if len(shapes.get(f"{n}v_b.weight", ())) == 3]


def read_joined(
    name: str, start: int, stop: int, shapes: Shapes, read: ReadRows
) -> Float32[np.ndarray, "rows rank"]:
    """Rows of `attn_kv_b`: head by head its keys, which are stored transposed, then its values.

    Args:
      name: of the joined tensor.
      start, stop: rows.
      shapes: of the tensors as they are stored.
      read: reads rows of a tensor as it is stored; here these are heads.
    """
    keys, values = name.replace("kv_b", "k_b"), name.replace("kv_b", "v_b")
    each = shapes[keys][2] + shapes[values][1]
    first, last = start // each, -(-stop // each)
    heads = np.concatenate(
        [read(keys, first, last).swapaxes(1, 2), read(values, first, last)], axis=1
    )
    rows = heads.reshape(-1, heads.shape[-1])
    return rows[start - first * each : stop - first * each]
