"""Safetensors files, written tensor by tensor.

Layout: https://huggingface.co/docs/safetensors. The package's own writer needs all bytes of a file
in memory; this one holds one tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor that is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], Shaped[np.ndarray, "*shape"]]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
    """Write arrays (numpy or jax) under their names, whole or not at all.

    Args:
      path: the file; one that is there is replaced.
      tensors: float, integer or boolean arrays.

    Raises:
      OSError: it cannot be written.
      KeyError: an array of a type that safetensors does not have.

    >>> import tempfile
    >>> from safetensors.numpy import load_file
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_safetensors(path, {"a": np.arange(3, dtype=np.int32)})
    >>> load_file(path)["a"].tolist()
    [0, 1, 2]
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    entries = [
        Entry(
            name=name,
            shape=tuple(array.shape),
            dtype=np.dtype(array.dtype),
            make=lambda array=array: np.asarray(array),
        )
        for name, array in tensors.items()
    ]
    try:
        write_entries(part, entries)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_entries(
    path: Path, entries: Iterable[Entry], *, done: Callable[[int], None] = lambda _: None
) -> None:
    """Write a file, one tensor in memory at a time.

    Args:
      path: the file.
      entries: its tensors; wide types are put first, so that each lies at a multiple of its width.
      done: is told the bytes of each tensor that has been written.
    """
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.num_bytes
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype.name],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            array = np.ascontiguousarray(entry.make())
            assert array.shape == entry.shape and array.dtype == entry.dtype, entry.name
            # little-endian, as all machines that JAX runs on are
            file.write(array.reshape(-1).view(np.uint8).data)
            done(entry.num_bytes)
        file.flush()
        os.fsync(file.fileno())
