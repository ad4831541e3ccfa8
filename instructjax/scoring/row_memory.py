"""How long a packed row may be: what a position takes in memory, and what a device can spare."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp

from instructjax.batching.packing import ROW_LENGTHS
from instructjax.models.config import DecoderConfig
from instructjax.models.model import Model
from instructjax.models.sharded import device_bytes

# Bytes of a row's activations where the device does not say how much memory it has, as a CPU.
CPU_BYTES = 1 << 31


def bytes_per_position(config: DecoderConfig, dtype: str, *, top_k: int = 0) -> int:
    """Memory that one more position of a row takes while a layer is computed.

    The stream before and after the layer, queries, keys and values, attention's result in float32,
    and what stands between the matrices of the MLP. Layers follow each other, so one counts. It is
    an estimate: what XLA holds at its fullest is within a factor of two.

    Args:
      config: of the model.
      dtype: of its activations.
      top_k: alternatives kept of a scored position, an id and a number each.
    """
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inner = config.intermediate_size * max(config.experts_per_token, 1) + config.shared_size
    inner = max(inner, config.dense_size) * (3 if config.gated else 2)
    size = jnp.dtype(dtype).itemsize
    attended = config.num_heads * config.head_dim * (size + 4)
    stream = 4 * config.hidden_size * size
    return stream + max(heads * size + attended, inner * size) + 8 * top_k


def free_bytes() -> float:
    """Memory of a device that nothing has taken; infinite where the system does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 / jax.local_device_count()


def longest_row(model: Model, *, top_k: int = 0) -> int:
    """Positions of the longest row that requests may share on the model's devices.

    They take half of what the weights leave of a device's memory, or `CPU_BYTES`. A row is longer
    where one request needs that.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    room = CPU_BYTES
    if limit:
        room = max(limit - device_bytes(model.params), 0) // 2
    fitting = room // bytes_per_position(model.config, model.dtype, top_k=top_k)
    return max(fitting, ROW_LENGTHS[0])
