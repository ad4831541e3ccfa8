"""Hugging Face folders: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open

from instructjax.errors import ModelError
from instructjax.models.checkpoints.params import most_common
from instructjax.models.families.family import Spelling

_FLOATS = ("F32", "F16", "BF16")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class SafetensorsFolder:
    """The weights of a Hugging Face folder, read one piece of a tensor at a time.

    Args:
      folder: holds model.safetensors, or shards and model.safetensors.index.json.
      renames: pairs of a pattern and what replaces it, for older names of tensors; the first
        that matches a name counts.

    Attributes:
      files: the weight files, in order of their names.
      shapes: the shape of every tensor.
      kind: the type that most of the parameters are stored in, such as "BF16".

    Raises:
      ModelError: no safetensors, a damaged file, an index that does not fit its shards, or a
        tensor of a type other than float32, float16 and bfloat16.
    """

    spelling: Spelling = "hf"

    def __init__(self, folder: Path, renames: Sequence[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self._renames = [(re.compile(pattern), new) for pattern, new in renames]
        self._stored: dict[str, str] = {}
        index = {self._rename(name): shard for name, shard in _read_index(folder).items()}
        names = sorted(set(index.values())) if index else [_SINGLE]
        self.files = [folder / name for name in names]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        kinds: dict[str, str] = {}
        for file in self.files:
            kinds |= self._read_header(file)
        self.kind = most_common((kind, self.shapes[name]) for name, kind in kinds.items())
        for name, file_name in index.items():
            if self._file_of.get(name) != folder / file_name:
                raise ModelError(
                    f"the index places tensor {name} in {file_name}, which does not hold it",
                    file=folder / _INDEX,
                )

    def _rename(self, name: str) -> str:
        for pattern, new in self._renames:
            if pattern.search(name):
                return pattern.sub(new, name)
        return name

    def _read_header(self, file: Path) -> dict[str, str]:
        """Enters the tensors of a file; returns the type of each."""
        kinds: dict[str, str] = {}
        if not file.is_file():
            raise ModelError("the index names this shard, but it is missing", file=file)
        try:
            with safe_open(file, "numpy") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    view, name = tensors.get_slice(stored), self._rename(stored)
                    if name in self.shapes:
                        raise ModelError(
                            f"tensor {name} is also in {self._file_of[name].name}", file=file
                        )
                    if view.get_dtype() not in _FLOATS:
                        raise ModelError(
                            f"tensor {name} is stored as {view.get_dtype()}, "
                            f"only {', '.join(_FLOATS)} are supported",
                            file=file,
                        )
                    self.shapes[name] = tuple(view.get_shape())
                    self._file_of[name] = file
                    self._stored[name] = stored
                    kinds[name] = view.get_dtype()
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        return kinds

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor; the folder for a tensor that is in none."""
        return self._file_of.get(name, self.folder)

    def read_rows(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "rows ..."]:
        """Rows `start` to `stop` of a tensor, in the type it is stored in."""
        file = self._file_of[name]
        try:
            # Opened anew each time: a map kept open would hold on to every page ever read.
            with safe_open(file, "numpy") as tensors:
                return tensors.get_slice(self._stored[name])[start:stop]
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
      ModelError: the file is missing, or is not a JSON object.
    """
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
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
    if (folder / _SINGLE).is_file():
        return {}
    if not (folder / _INDEX).is_file():
        raise _no_weights(folder)
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
    if (folder / "adapter_model.safetensors").is_file():
        return ModelError(
            "holds an adapter, not a model", file=folder, remedy="merge it into its base model"
        )
    return ModelError(
        f"has neither {_SINGLE} nor {_INDEX}",
        file=folder,
        remedy="give the folder of a complete model",
    )


def _damaged(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"is truncated, damaged or not safetensors: {error}",
        file=file,
        remedy="download or copy it again",
    )
