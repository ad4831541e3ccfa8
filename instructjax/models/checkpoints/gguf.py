"""GGUF weights: dequantized block by block, on their way to their place."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from jaxtyping import Float32, UInt8

from instructjax.errors import ModelError
from instructjax.models.checkpoints.gguf_file import GgufFile, read_gguf_file
from instructjax.models.checkpoints.gguf_joined import join_shapes, read_joined
from instructjax.models.checkpoints.params import most_common
from instructjax.models.config import DecoderConfig
from instructjax.models.families import Family, family_for_gguf
from instructjax.models.families.family import Spelling
from instructjax.models.families.gguf_config import with_longrope

# `dequantize` works on 16 rows at a time; rows of about so many elements keep that in cache.
_ROW_ELEMENTS = 2304
# Where a file says what model it holds, and the names of those that may have a sliding window.
_NAMING = re.compile(r"general\.(name|basename|finetune|base_model\.\d+\.(name|repo_url))")
_WINDOWED = re.compile(r"mi[sx]tral|zephyr", re.IGNORECASE)


class GgufWeights:
    """The weights of a GGUF file, read one piece of a tensor at a time.

    Args:
      path: the file.

    Attributes:
      header: metadata and directory.
      shapes: the shape of every tensor, outermost first.
      kind: the type that most of the parameters are stored in, such as "Q4_1".
      family, config: what the metadata describes.

    Raises:
      ModelError: a damaged file, a family or a type of tensor that is not supported.
    """

    spelling: Spelling = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: GgufFile = read_gguf_file(path)
        self._stored = {name: tensor.shape for name, tensor in self.header.tensors.items()}
        self.shapes = join_shapes(self._stored)
        for kind in {tensor.kind for tensor in self.header.tensors.values()}:
            self._check_kind(kind)
        self.kind = most_common(
            (tensor.kind.name, tensor.shape) for tensor in self.header.tensors.values()
        )
        metadata = self.header.metadata
        self.family: Family = family_for_gguf(metadata, path)
        factors = None
        if "rope_freqs.weight" in self.shapes:
            factors = self.read_rows("rope_freqs.weight", 0, self.shapes["rope_freqs.weight"][0])
        read_config = self.family.config_from_gguf
        assert read_config is not None  # `family_for_gguf` names only families that have it
        self.config: DecoderConfig = read_config(metadata, self.shapes, factors, path)
        long, short = (f"rope_factors_{kind}.weight" for kind in ("long", "short"))
        if self.family.model_type == "phi3" and long in self.shapes and short in self.shapes:
            near, far = (self.read_rows(n, 0, self.shapes[n][0]) for n in (short, long))
            self.config = with_longrope(self.config, metadata, near, far, path)
        self._warn_of_what_is_unsaid()

    def _warn_of_what_is_unsaid(self) -> None:
        """Llama's metadata has no word for a window, and Mistral's models are written so."""
        if self.header.metadata["general.architecture"] != "llama":
            return
        names = [v for k, v in self.header.metadata.items() if _NAMING.fullmatch(k)]
        if any(isinstance(name, str) and _WINDOWED.search(name) for name in names):
            warnings.warn(
                f"{self.path}: GGUF has no `sliding_window` for Mistral's models. Attention is "
                "full here, as in llama.cpp; Mistral 7B v0.1 and what was made of it see 4,096 "
                "tokens. For longer texts with these, load the Hugging Face folder.",
                stacklevel=2,
            )

    def _check_kind(self, kind: GGMLQuantizationType) -> None:
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            name = next(n for n, t in self.header.tensors.items() if t.kind == kind)
            raise ModelError(
                f"tensor {name} is stored as {kind.name}, which is not supported", file=self.path
            ) from None

    def file_of(self, name: str) -> Path:
        """The file: there is but one."""
        return self.path

    def read_rows(self, name: str, start: int, stop: int) -> Float32[np.ndarray, "rows ..."]:
        """Rows `start` to `stop` of a tensor, dequantized to float32."""
        if name not in self._stored:
            return read_joined(name, start, stop, self._stored, self.read_rows)
        tensor = self.header.tensors[name]
        row_bytes = tensor.num_bytes // tensor.shape[0]
        if len(tensor.shape) == 1:
            # One row of blocks; a vector is small and read whole.
            row_bytes, first, last = tensor.num_bytes, 0, 1
        else:
            first, last = start, stop
        size = (last - first) * row_bytes
        # Read, not mapped: pages of a map would count as this process's memory.
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset + first * row_bytes)
                data = file.read(size)
        except OSError as error:
            raise ModelError(f"cannot be read: {error}", file=self.path) from error
        if len(data) != size:
            raise ModelError(
                f"tensor {name} ends beyond the end of the file",
                file=self.path,
                remedy="download or copy it again",
            )
        values = dequantize_bytes(np.frombuffer(data, np.uint8), tensor.kind)
        if len(tensor.shape) == 1:
            return values[start:stop]
        return values.reshape(stop - start, *tensor.shape[1:])


def dequantize_bytes(
    data: UInt8[np.ndarray, " bytes"], kind: GGMLQuantizationType
) -> Float32[np.ndarray, " elements"]:
    """Whole blocks of a quantized type, in order, as float32.

    >>> from gguf.quants import quantize
    >>> kind = GGMLQuantizationType.Q8_0
    >>> data = quantize(np.arange(-16, 16, dtype=np.float32)[None] * 127 / 16, kind)
    >>> dequantize_bytes(data.reshape(-1), kind)[:3].tolist()
    [-127.0, -119.0, -111.0]
    """
    block, block_bytes = GGML_QUANT_SIZES[kind]
    num_blocks = data.size // block_bytes
    # Blocks do not know of rows, so they are laid out in rows of the length that is fastest.
    widest = max(1, min(num_blocks, _ROW_ELEMENTS // block))
    width = next(w for w in range(widest, 0, -1) if num_blocks % w == 0)
    with np.errstate(all="ignore"):  # NaN and infinity are looked for once they are in place
        return dequantize(data.reshape(-1, width * block_bytes), kind).reshape(-1)
