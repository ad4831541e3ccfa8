"""Hugging Face folders: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from instructjax.errors import ModelError
from instructjax.models.checkpoints.params import most_common
from instructjax.models.checkpoints.quantized import (
    FLOAT8,
    block_of,
    scale_blocks,
    unpack_mxfp4,
)
from instructjax.models.families.family import Spelling
from instructjax.models.families.quantization import Float8

_FLOATS = ("F64", "F32", "F16", "BF16")
# What the scales of a float8 tensor are called, after its own name; those of activations, after
# the name of its module; those of what is kept of keys and values, after that of attention.
_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub", "output_scale")
_CACHE = re.compile(r".*\.self_attn\.(?:q|k|v|kv)_scale")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class SafetensorsFolder:
    """The weights of a Hugging Face folder, read one piece of a tensor at a time.

    Args:
      folder: holds model.safetensors, or shards and model.safetensors.index.json.
      renames: pairs of a pattern and what replaces it, one after the other, for other names of
        tensors.
      float8: what the configuration says of float8 weights; None: nothing.
      stacks: see `Family.stacks`.

    Attributes:
      files: the weight files, in order of their names.
      shapes: the shape of every tensor; one that is stored as numbers and their scales (MXFP4,
        float8) is one tensor here, under the name that it has unquantized; a stack of experts'
        matrices is as many tensors as it has parts.
      kind: the type that most of the parameters are stored in, such as "BF16".

    Raises:
      ModelError: no safetensors, a damaged file, an index that does not fit its shards, a tensor
        of whole numbers other than MXFP4's, or one of float8 whose scales are missing.
    """

    spelling: Spelling = "hf"

    def __init__(
        self,
        folder: Path,
        renames: Sequence[tuple[str, str]] = (),
        float8: Float8 | None = None,
        stacks: Mapping[str, Sequence[str]] = {},
    ) -> None:
        self.folder = folder
        self._renames = [(re.compile(pattern), new) for pattern, new in renames]
        self._stored: dict[str, str] = {}
        index = {self._rename(name): shard for name, shard in _read_index(folder).items()}
        names = sorted(set(index.values())) if index else [_SINGLE]
        self.files = [folder / name for name in names]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._kinds: dict[str, str] = {}
        for file in self.files:
            self._read_header(file)
        for name, file_name in index.items():
            if self._file_of.get(name) != folder / file_name:
                raise ModelError(
                    f"the index places tensor {name} in {file_name}, which does not hold it",
                    file=folder / _INDEX,
                )
        self._packed: dict[str, tuple[str, str]] = {}
        # The scales, the block of each, and whether every matrix of a stack has scales of its own.
        self._scaled: dict[str, tuple[str, tuple[int, int], bool]] = {}
        self._join_quantized(float8)
        self._part_of: dict[str, tuple[str, int, int]] = {}
        self._part_stacks(stacks)
        self.kind = most_common((self._kinds[name], shape) for name, shape in self.shapes.items())

    def _rename(self, name: str) -> str:
        for pattern, new in self._renames:
            name = pattern.sub(new, name)
        return name

    def _read_header(self, file: Path) -> None:
        """Enters the tensors of a file."""
        if not file.is_file():
            raise ModelError(
                "the index names this shard, but it is missing",
                file=file,
                remedy="download or copy it again",
            )
        try:
            with safe_open(file, "numpy") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    view, name = tensors.get_slice(stored), self._rename(stored)
                    if name in self.shapes:
                        raise ModelError(
                            f"tensor {name} is also in {self._file_of[name].name}", file=file
                        )
                    self.shapes[name] = tuple(view.get_shape())
                    self._file_of[name] = file
                    self._stored[name] = stored
                    self._kinds[name] = view.get_dtype()
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error

    def _join_quantized(self, float8: Float8 | None) -> None:
        """Makes one tensor of each that is stored as numbers and their scales."""
        for name in [name for name in self.shapes if name.endswith("_blocks")]:
            whole, scales = name.removesuffix("_blocks"), name.removesuffix("blocks") + "scales"
            shape = self.shapes[name]
            if (self._kinds[name], self._kinds.get(scales)) != ("U8", "U8"):
                continue
            if len(shape) != 4 or shape[3] != 16 or self.shapes[scales] != shape[:3]:
                raise ModelError(
                    f"tensors {name} and {scales} of shapes {list(shape)} and "
                    f"{list(self.shapes[scales])} do not fit together",
                    file=self.file_of(name),
                )
            self._packed[whole] = (name, scales)
            self._file_of[whole], self._kinds[whole] = self.file_of(name), "MXFP4"
            self.shapes[whole] = (shape[0], 32 * shape[2], shape[1])
            del self.shapes[name], self.shapes[scales]
        for name in [name for name in self.shapes if self._kinds[name] in FLOAT8]:
            scales = next((name + end for end in _SCALES if name + end in self.shapes), None)
            if scales is None:
                continue
            size = block_of(self.shapes[name], self.shapes[scales], float8 and float8.block)
            if size is None:
                raise ModelError(
                    f"tensor {name} of shape {list(self.shapes[name])} has scales of shape "
                    f"{list(self.shapes[scales])}, which do not fit it",
                    file=self.file_of(name),
                )
            each = len(self.shapes[name]) > 2 and math.prod(self.shapes[scales]) > 1
            self._scaled[name] = (scales, size, each)
            del self.shapes[scales]
            # Of activations, which are not quantized here.
            for end in _ACTIVATIONS:
                self.shapes.pop(name.removesuffix("weight") + end, None)
        if float8 or self._scaled:  # nor are keys and values
            for name in [name for name in self.shapes if _CACHE.fullmatch(name)]:
                del self.shapes[name]
        for name in self.shapes:
            # Numbers of float8 alone are what they say; with a scale lost they would be others.
            alone = self._kinds[name] in FLOAT8 and name not in self._scaled
            if alone and (float8 or self._scaled):
                raise ModelError(
                    f"tensor {name} is stored as {self._kinds[name]}, and its scales "
                    f"({' or '.join(name + end for end in _SCALES)}) are missing",
                    file=self.file_of(name),
                )
            if (kind := self._kinds[name]) not in (*_FLOATS, *FLOAT8, "MXFP4"):
                raise ModelError(
                    f"tensor {name} is stored as {kind}, only {', '.join((*_FLOATS, *FLOAT8))} "
                    "and MXFP4 are supported",
                    file=self.file_of(name),
                )

    def _part_stacks(self, stacks: Mapping[str, Sequence[str]]) -> None:
        """Gives each expert's matrices in a stack the names that they have one by one."""
        for end, parts in stacks.items():
            for stack in [name for name in self.shapes if name.endswith(f".{end}")]:
                shape = self.shapes[stack]
                if len(shape) != 3 or not math.prod(shape) or shape[1] % len(parts):
                    raise ModelError(
                        f"tensor {stack} has shape {list(shape)}, which is no stack of experts",
                        file=self.file_of(stack),
                    )
                rows, before = shape[1] // len(parts), stack.removesuffix(end)
                for expert, (part, called) in itertools.product(range(shape[0]), enumerate(parts)):
                    name = before + called.replace("{each}", str(expert))
                    if name in self.shapes:
                        raise ModelError(
                            f"tensor {name} is also in the stack {stack}", file=self.file_of(stack)
                        )
                    self._part_of[name] = (stack, expert, part * rows)
                    self._file_of[name] = self.file_of(stack)
                    self._kinds[name], self.shapes[name] = self._kinds[stack], (rows, shape[2])
                del self.shapes[stack]

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor; the folder for a tensor that is in none."""
        return self._file_of.get(name, self.folder)

    def read_rows(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "rows ..."]:
        """Rows `start` to `stop` of a tensor, in the type it is stored in; scaled, in float32."""
        if name in self._packed:
            blocks, scales = (self._read(part, start, stop) for part in self._packed[name])
            return unpack_mxfp4(blocks, scales).swapaxes(1, 2)
        expert = None
        if name in self._part_of:
            name, expert, before = self._part_of[name]
            start, stop = before + start, before + stop
        rows = self._read(name, start, stop, expert)
        if name not in self._scaled:
            return rows
        scales, block, each = self._scaled[name]
        if each and expert is None:
            return scale_blocks(rows, self._read(scales, start, stop), block)
        return scale_blocks(rows, self._read(scales, expert=expert if each else None), block, start)

    def _read(
        self, name: str, start: int = 0, stop: int | None = None, expert: int | None = None
    ) -> Shaped[np.ndarray, "*shape"]:
        """Rows of a tensor, or of one in a stack, as they are stored; all if none are named."""
        file, stored, kind = self._file_of[name], self._stored[name], self._kinds[name]
        try:
            if kind in FLOAT8:
                return _read_float8(file, stored, start, stop, expert, FLOAT8[kind])
            # Opened anew each time: a map kept open would hold on to every page ever read.
            with safe_open(file, "numpy") as tensors:
                if expert is not None:
                    return tensors.get_slice(stored)[expert, start:stop]
                if stop is None:
                    return tensors.get_tensor(stored)
                return tensors.get_slice(stored)[start:stop]
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def _read_float8(
    file: Path, name: str, start: int, stop: int | None, expert: int | None, dtype: np.dtype
) -> Shaped[np.ndarray, "*shape"]:
    """Rows of a tensor of bytes, which `safe_open` has no numpy type for.

    The header has been checked by `safe_open`: offsets lie within the file and fit the shapes.
    """
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        entry = json.loads(opened.read(size))[name]
        shape, offset = entry["shape"], entry["data_offsets"][0]
        if expert is not None:
            shape = shape[1:]
            offset += expert * math.prod(shape)
        width = math.prod(shape[1:])
        count = (min(stop, shape[0]) if stop is not None else math.prod(shape[:1])) - start
        opened.seek(8 + size + offset + start * width)
        data = opened.read(count * width)
    return np.frombuffer(data, dtype).reshape((count, *shape[1:]) if shape else ())


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
      ModelError: the file is missing, or is not a JSON object.
    """
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        if (file.parent / _ADAPTER).is_file():
            raise _adapter(file.parent) from None
        raise ModelError(
            "the file is missing", file=file, remedy="give the folder of a complete model"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", file=file) from error
    if not isinstance(values, dict):
        raise ModelError("is not a JSON object", file=file)
    return values


def _read_index(folder: Path) -> dict[str, str]:
    """The shard of every tensor; empty where there is one file and no shards."""
    single = (folder / _SINGLE).is_file()
    if not single and not (folder / _INDEX).is_file():
        raise _no_weights(folder)
    if (folder / _ADAPTER).is_file():  # transformers would apply it, to a base of another name
        raise ModelError(
            f"holds a model and an adapter ({_ADAPTER})",
            file=folder,
            remedy="merge them, or move the adapter elsewhere if the model alone is meant",
        )
    if single:
        return {}
    file = folder / _INDEX
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError("has no `weight_map`", file=file)
    for name, shard in index.items():
        # A shard lies in the folder itself. It may be a symbolic link, as in the hub's cache.
        if (
            not isinstance(shard, str)
            or not shard.endswith(".safetensors")
            or shard != Path(shard).name
            or "\\" in shard
            or "\0" in shard
        ):
            raise ModelError(
                f"places tensor {name} in {shard!r}, which is no safetensors file of its folder",
                file=file,
            )
    return index


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"the weights are pickled ({pickles[0]}), and unpickling runs code of their author",
            file=folder,
            remedy="convert them to safetensors (transformers' `save_pretrained` writes it)",
        )
    if (folder / _ADAPTER).is_file():
        return _adapter(folder)
    return ModelError(
        f"has neither {_SINGLE} nor {_INDEX}",
        file=folder,
        remedy="give the folder of a complete model",
    )


def _adapter(folder: Path) -> ModelError:
    return ModelError(
        "holds an adapter, not a model",
        file=folder,
        remedy="merge it: `instructjax convert RUN --out FOLDER` if it came from a run of "
        "instructjax, else `merge_and_unload` of PEFT",
    )


def _damaged(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"is truncated, damaged or not safetensors: {error}",
        file=file,
        remedy="download or copy it again",
    )
