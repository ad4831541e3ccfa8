"""From the tensors of a checkpoint to the tree of parameters, tensor by tensor."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jaxtyping import Shaped

from instructjax.errors import ModelError
from instructjax.models.checkpoints.onto_devices import Piece, assemble
from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family, Spelling, TensorRule
from instructjax.sharding.processes import tick

Params = dict[str, Any]

# A tensor is read in blocks of rows of about so many elements: what is in flight stays small.
_BLOCK_ELEMENTS = 1 << 21


@runtime_checkable
class TensorSource(Protocol):
    """An open checkpoint file or folder."""

    @property
    def spelling(self) -> Spelling:
        """Whose names the tensors have."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, outermost first."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> Shaped[np.ndarray, "rows ..."]:
        """Rows `start` to `stop` of a tensor, as floats."""
        ...


def load_params(
    family: Family,
    config: DecoderConfig,
    source: TensorSource,
    dtype: Any,
    shardings: Callable[[str], NamedSharding] | None = None,
) -> Params:
    """Read every tensor of a checkpoint into its place.

    On one CPU device a parameter is filled in memory that the device takes over as it is: the
    peak is one copy of the weights. Elsewhere, and on a mesh, the host holds one tensor at a time
    (one expert's, one layer's), which is written into its place on the devices and let go.

    Args:
      family: names and shapes of the tensors.
      config: the model's configuration.
      source: the open checkpoint.
      dtype: what the parameters become, float32 or bfloat16.
      shardings: that of each parameter, by its dotted path; None: all on the default device.

    Returns:
      A nested dict of jax arrays; layers are stacked on a leading axis, kernels are [in, out].

    Raises:
      ModelError: a tensor is missing, left over, of another shape, or holds NaN or infinity.
    """
    check_tensors(family, config, source)
    params: Params = {}
    # Single tensors first: while the largest of them is in flight, little else is held.
    for rule in sorted(family.rules(config, source.spelling), key=lambda rule: rule.stacked):
        tick()
        kind = np.dtype(np.float32 if rule.in_float32 else dtype)
        try:
            with np.errstate(all="ignore"):  # what overflows or is no number is found by _fill
                sharding = shardings and shardings(rule.param)
                leaf = _load(family, rule, config, source, kind, sharding)
        except MemoryError:
            size = math.prod(rule.param_shape(config)) * kind.itemsize
            raise ModelError(
                f"not enough memory for {rule.param} ({size / 1e9:.1f} GB)",
                remedy="load with dtype bfloat16 or take a smaller model",
            ) from None
        *groups, last = rule.param.split(".")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = leaf
    return params


def _load(
    family: Family,
    rule: TensorRule,
    config: DecoderConfig,
    source: TensorSource,
    dtype: np.dtype,
    sharding: NamedSharding | None,
) -> Shaped[jax.Array, "*shape"]:
    """One parameter, in its place."""
    shape = rule.param_shape(config)
    leading = rule.stacked + bool(rule.each)
    layers, each = rule.layers(config), rule.count(config)
    tied = rule.param == "embed.embedding" and config.tie_embeddings
    (device,) = jax.device_put(np.int8(0)).devices()  # the default one

    def fill(place: Shaped[np.ndarray, "*piece"], index: int, number: int) -> None:
        _fill(place, rule, config, source, layers[index], number)
        if tied:
            _check_tied_copy(family.tied_copy, source, place)

    if sharding is None and _takes_memory_over(device):
        host = _aligned_empty(shape, dtype)
        places = host.reshape(len(layers), each, *shape[leading:])
        for at in np.ndindex(len(layers), each):
            fill(places[at], *at)
        return jax.block_until_ready(jax.device_put(host))

    def pieces() -> Iterator[Piece]:
        for index, number in np.ndindex(len(layers), each):
            piece = _aligned_empty(shape[leading:], dtype)
            fill(piece, index, number)
            yield (index,) * rule.stacked + (number,) * bool(rule.each), piece

    return assemble(shape, dtype, sharding or SingleDeviceSharding(device), pieces())


def _takes_memory_over(device: Any) -> bool:
    """Whether an array of the host becomes one of the device without a copy."""
    return device.platform == "cpu"


def check_tensors(family: Family, config: DecoderConfig, source: TensorSource) -> None:
    """Compare names and shapes with what the configuration calls for, before any is read.

    Raises:
      ModelError: a tensor is missing, left over or of another shape.
    """
    spelling, shapes = source.spelling, source.shapes
    # A configuration may claim a billion layers; the first few absent tensors are enough.
    missing = (name for name, _ in family.names(config, spelling) if name not in shapes)
    if absent := list(itertools.islice(missing, 4)):
        names = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ModelError(f"missing tensors: {names}", file=source.file_of(absent[0]))
    expected = dict(family.names(config, spelling))
    harmless = re.compile("|".join(f"(?:{pattern})" for pattern in family.harmless[spelling]))
    for name in shapes:
        if name in expected or harmless.fullmatch(name):
            continue
        if spelling == "hf" and config.tie_embeddings and name == family.tied_copy:
            continue
        raise ModelError(
            f"surplus tensor {name}: the configuration has no place for it",
            file=source.file_of(name),
        )
    for name, rule in expected.items():
        wanted = rule.stored_shape(config)
        if tuple(shapes[name]) != wanted:
            raise ModelError(
                f"tensor {name} has shape {list(shapes[name])}, "
                f"the configuration says {list(wanted)}",
                file=source.file_of(name),
            )


def _fill(
    place: Shaped[np.ndarray, "*piece"],
    rule: TensorRule,
    config: DecoderConfig,
    source: TensorSource,
    layer: int,
    number: int,
) -> None:
    """Reads one tensor into its place; `number` counts those that a layer has of it."""
    name = rule.name(source.spelling, layer, number)
    place = place.T if rule.transpose else place
    place = place.swapaxes(-1, -2) if rule.transpose_last else place
    if rule.offset:  # before it is rounded to bfloat16
        values = source.read_rows(name, 0, len(place)).astype(np.float32)
        place[...] = values - np.float32(rule.offset)
    elif rule.each_stacked and source.spelling == "gguf":
        place[...] = _stacked_row(rule, config, source, name, number)
    elif rule.fused and rule.fused_axis == 0:
        stored = source.read_rows(name, 0, rule.stored_shape(config)[0])
        place[...] = rule.part_of(stored, config)
    else:
        _copy_rows(rule, config, source, name, place)
    if not _all_finite(place):
        raise ModelError(f"tensor {name} holds NaN or infinity", file=source.file_of(name))


def _stacked_row(
    rule: TensorRule, config: DecoderConfig, source: TensorSource, name: str, number: int
) -> Shaped[np.ndarray, "*shape"]:
    """One of those that are stored along a first axis."""
    (row,) = source.read_rows(name, number, number + 1)
    return row


def _copy_rows(
    rule: TensorRule,
    config: DecoderConfig,
    source: TensorSource,
    name: str,
    place: Shaped[np.ndarray, "*shape"],
) -> None:
    heads = rule.num_rotary_heads(config, source.spelling)
    if rule.dims == "HD" or rule.dims == "JD":  # a number for every feature of every head
        flat = source.read_rows(name, 0, len(place)).reshape(-1)
        flat = _join_halves(flat, config.head_dim) if heads else flat
        place[...] = flat.reshape(place.shape)
        return
    rows = place.shape[0]
    step = max(1, _BLOCK_ELEMENTS // max(1, place[0].size))
    if heads:
        step = math.ceil(step / config.head_dim) * config.head_dim
    for start in range(0, rows, step):
        block = source.read_rows(name, start, min(start + step, rows))
        block = rule.part_of(block, config) if rule.fused else block
        place[start : start + step] = _join_halves(block, config.head_dim) if heads else block


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> Shaped[np.ndarray, "*shape"]:
    """Memory that begins at a multiple of 64 bytes, which JAX on CPU takes over uncopied."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _join_halves(
    rows: Shaped[np.ndarray, "rows ..."], head_dim: int
) -> Shaped[np.ndarray, "rows ..."]:
    """Undo the interleaving of rotary pairs: within each head, row 2i + h becomes row i + h D/2."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _all_finite(array: Shaped[np.ndarray, "*shape"]) -> bool:
    if array.dtype == ml_dtypes.bfloat16:
        # ml_dtypes has no fast isfinite: the exponent is all ones for NaN and infinity only
        return not ((array.view(np.uint16) & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(array).all())


def _check_tied_copy(
    name: str, source: TensorSource, embedding: Shaped[np.ndarray, "vocab hidden"]
) -> None:
    """A head stored beside a tied embedding must be that embedding."""
    if source.spelling != "hf" or name not in source.shapes:
        return
    same = tuple(source.shapes[name]) == embedding.shape
    step = max(1, _BLOCK_ELEMENTS // embedding.shape[1])
    for start in range(0, len(embedding) if same else 0, step):
        block = embedding[start : start + step]
        head = source.read_rows(name, start, start + len(block)).astype(block.dtype)
        same = same and np.array_equal(head, block)
    if not same:
        raise ModelError(
            f"tensor {name} differs from the embedding, but `tie_word_embeddings` is true",
            file=source.file_of(name),
            remedy="set `tie_word_embeddings` to false in config.json if that head is meant",
        )


def most_common(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The type that most elements are of, among the (type, shape) of tensors.

    >>> most_common([("F32", (64,)), ("F32", (64,)), ("Q4_1", (64, 64))])
    'Q4_1'
    """
    sizes: Counter[str] = Counter()
    for kind, shape in tensors:
        sizes[kind] += math.prod(shape)
    return sizes.most_common(1)[0][0] if sizes else "none"
