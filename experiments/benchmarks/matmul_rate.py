"""What the machine's matmuls reach: the physical limit that a forward pass is held against."""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from instructjax.models.config import DecoderConfig

ROWS = 2048


def layer_shapes(config: DecoderConfig) -> list[tuple[int, int]]:
    """(in, out) of the seven projections of a layer."""
    e, f = config.hidden_size, config.intermediate_size
    q, k = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return [(e, q), (e, k), (e, k), (q, e), (e, f), (e, f), (f, e)]


def layer_flops(config: DecoderConfig) -> int:
    """Multiply-adds of all layers' projections for one token, times two."""
    return 2 * config.num_layers * sum(a * b for a, b in layer_shapes(config))


def bare_matmul_flops(config: DecoderConfig, *, repeats: int = 7) -> float:
    """FLOP/s of the layer's projections, each alone on `ROWS` tokens in float32.

    Every shape is timed by itself, and the total work is divided by the sum of the medians.
    """
    seconds = 0.0
    for inner, outer in layer_shapes(config):
        x = jax.random.normal(jax.random.key(0), (ROWS, inner))
        w = jax.random.normal(jax.random.key(1), (inner, outer))
        multiply = jax.jit(jnp.matmul)
        multiply(x, w).block_until_ready()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            multiply(x, w).block_until_ready()
            times.append(time.perf_counter() - start)
        seconds += statistics.median(times)
    return ROWS * layer_flops(config) / config.num_layers / seconds
