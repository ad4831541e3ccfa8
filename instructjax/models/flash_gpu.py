"""Pallas kernels of attention for GPUs, by way of Triton: the same sums as on TPUs.

A program has a block of queries, goes through the blocks of keys that they may see, and keeps the
running softmax in registers (Dao et al. 2022, FlashAttention); for the gradients of keys and values
it has a block of keys, and goes through the queries that may see them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from instructjax.models.flash_blocks import (
    Marks,
    Options,
    add_block,
    any_seen,
    dot,
    finish_sums,
    mask_pairs,
    slope_pairs,
    start_sums,
)

# Features of the widest head, and bytes of a block of them: beyond, registers and shared memory
# would not do.
_WIDEST = 256
_BLOCK_BYTES = 1 << 14


def block_size(length: int, width: int, itemsize: int) -> int | None:
    """Queries and keys a block; None where there is no kernel.

    Args:
      length: of rows, in tokens.
      width: features of the wider of keys and values.
      itemsize: bytes of a feature.

    >>> [block_size(2048, *head) for head in [(64, 2), (128, 2), (128, 4), (192, 4), (576, 2)]]
    [64, 64, 32, 16, None]
    >>> block_size(1000, 64, 2) is None
    True
    """
    size = min(64, _BLOCK_BYTES // (_padded(width) * itemsize))
    return size if width <= _WIDEST and length % size == 0 else None


def _padded(width: int) -> int:
    """Features up to a power of two, and enough for a product."""
    return max(16, pl.next_power_of_2(width))


def _at(block, size):
    return pl.ds(block * size, size)


def _forward_kernel(
    width, places, firsts, q, k, v, ends, q_depth, k_depth, out, norm, *, size, options
):
    i = places[pl.program_id(2)]
    rows = q[0, 0]
    depth = q_depth[0, _at(pl.program_id(2), size)][:, None]
    window = width[0] if options.windowed else None

    def visit(j, running):
        here = _at(j, size)
        marks = ends[0, here][None], depth, k_depth[0, here][None], window

        def add(sums):
            seen = mask_pairs(i, j, size, *marks)
            return add_block(sums, rows, k[0, 0, here], v[0, 0, here], seen, options)

        return lax.cond(any_seen(i, j, size, *marks), add, lambda x: x, running)

    sums = lax.fori_loop(0, i + 1, visit, start_sums(size, v.shape[-1]))
    received, norms = finish_sums(sums)
    out[0, 0] = received.astype(out.dtype)
    norm[0, 0] = norms.reshape(size)


def _queries_kernel(
    width, places, firsts, q, k, v, g, norm, delta, ends, q_depth, k_depth, dq, *, size, options
):
    i = places[pl.program_id(2)]
    rows, slopes = q[0, 0], g[0, 0]
    norms, deltas = norm[0, 0][:, None], delta[0, 0][:, None]
    depth = q_depth[0, _at(pl.program_id(2), size)][:, None]
    window = width[0] if options.windowed else None

    def visit(j, acc):
        here = _at(j, size)
        marks = ends[0, here][None], depth, k_depth[0, here][None], window

        def add(acc):
            keys = k[0, 0, here]
            seen = mask_pairs(i, j, size, *marks)
            pairs = rows, keys, slopes, v[0, 0, here]
            _, d_scores = slope_pairs(*pairs, seen, norms, deltas, options)
            return acc + dot(d_scores.astype(keys.dtype), keys, (1, 0))

        return lax.cond(any_seen(i, j, size, *marks), add, lambda x: x, acc)

    acc = lax.fori_loop(0, i + 1, visit, jnp.zeros(rows.shape, jnp.float32))
    dq[0, 0] = acc.astype(dq.dtype)


def _keys_kernel(
    width, places, firsts, q, k, v, g, norm, delta, ends, q_depth, k_depth, dk, dv, *, size, options
):
    """Scores with keys as rows, so that nothing has to be transposed."""
    j, group = pl.program_id(2), q.shape[1]
    first = firsts[j]
    count = q.shape[2] // size - first
    keys, values = k[0, 0], v[0, 0]
    at_keys = _at(j, size)
    k_ends, depth = ends[0, at_keys][:, None], k_depth[0, at_keys][:, None]
    window = width[0] if options.windowed else None

    def visit(step, sums):
        head, at = lax.div(step, count), first + lax.rem(step, count)
        i, here = places[at], _at(at, size)
        marks = k_ends, q_depth[0, here][None], depth, window

        def add(k_acc, v_acc):
            rows, slopes = q[0, head, here], g[0, head, here]
            seen = mask_pairs(i, j, size, *marks, keys_first=True)
            of_queries = norm[0, head, here][None], delta[0, head, here][None]
            pairs = keys, rows, values, slopes
            weights, d_scores = slope_pairs(*pairs, seen, *of_queries, options)
            v_acc += dot(weights.astype(slopes.dtype), slopes, (1, 0))
            return k_acc + dot(d_scores.astype(rows.dtype), rows, (1, 0)), v_acc

        return lax.cond(any_seen(i, j, size, *marks), add, lambda *x: x, *sums)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    sums = lax.fori_loop(0, group * count, visit, zeros)
    dk[0, 0], dv[0, 0] = (x.astype(y.dtype) for x, y in zip(sums, (dk, dv), strict=True))


def _call(kernel, grid, arguments, specs, outputs, size, options: Options):
    varying = jax.typeof(arguments[1]).manual_axis_type
    return pl.pallas_call(
        partial(kernel, size=size, options=options),
        grid=grid,
        in_specs=specs,
        out_specs=[spec for spec, _, _ in outputs],
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
            for _, shape, dtype in outputs
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=options.interpret,
    )(*arguments)


class _Specs:
    """Where arrays of queries and of keys lie: a block of them, or all of the row."""

    def __init__(self, size: int, queries: int, keys: int, group: int) -> None:
        self.size, self.queries, self.keys, self.group = size, queries, keys, group

    def block(self, *width: int) -> pl.BlockSpec:
        """Of [B, H, Q] or [B, H, Q, width], or of keys, the block that the program is for."""
        zeros = (0,) * len(width)
        return pl.BlockSpec((1, 1, self.size, *width), lambda b, h, i: (b, h, i, *zeros))

    def keys_of_row(self, width: int) -> pl.BlockSpec:
        """Of [B, K, T, width], the keys or values of a head of queries."""
        shape = (1, 1, self.keys, width)
        return pl.BlockSpec(shape, lambda b, h, i: (b, lax.div(h, self.group), 0, 0))

    def queries_of_row(self, *width: int) -> pl.BlockSpec:
        """Of [B, H, Q] or [B, H, Q, width], the heads of queries of a head of keys."""
        zeros = (0,) * (len(width) + 1)
        shape = (1, self.group, self.queries, *width)
        return pl.BlockSpec(shape, lambda b, h, i: (b, h, *zeros))

    def scalars(self) -> list[pl.BlockSpec]:
        """Of the window's width and of `Marks.places`."""
        counts = 1, self.queries // self.size, self.keys // self.size
        return [pl.BlockSpec((count,), lambda b, h, i: (0,)) for count in counts]

    def marks(self) -> list[pl.BlockSpec]:
        """Of `ends`, and of depths of queries and of keys."""
        lengths = self.keys, self.queries, self.keys
        return [pl.BlockSpec((1, length), lambda b, h, i: (b, 0)) for length in lengths]


def _widen(*arrays) -> Any:
    """With features up to a power of two, of which the last are 0, and change no product."""

    def widen(x):
        more = _padded(x.shape[-1]) - x.shape[-1]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))) if more else x

    return tuple(map(widen, arrays))


def _lay_out(q, k, v, marks: Marks) -> tuple[int, _Specs, Any, Any]:
    """Size of blocks, where they lie, scalars, and what is known of each token."""
    size = block_size(marks.piece, max(q.shape[-1], v.shape[-1]), q.dtype.itemsize)
    assert size is not None, f"pieces of {marks.piece} tokens, heads of {q.shape[-1]} features"
    at = _Specs(size, q.shape[2], k.shape[2], q.shape[1] // k.shape[1])
    scalars = marks.width, *marks.places(size)
    return size, at, scalars, (marks.ends, marks.q_depth, marks.depth)


def forward(q, k, v, marks: Marks, *, options: Options):
    """(what each query sees [B, H, Q, V], log-normalizers [B, H, Q, 1])."""
    features = v.shape[-1]
    q, k, v = _widen(q, k, v)
    size, at, scalars, rest = _lay_out(q, k, v, marks)
    rows, heads, length, dim = q.shape
    values = v.shape[-1]
    out, norm = _call(
        _forward_kernel,
        (rows, heads, length // size),
        (*scalars, q, k, v, *rest),
        [*at.scalars(), at.block(dim), at.keys_of_row(dim), at.keys_of_row(values), *at.marks()],
        [
            (at.block(values), (rows, heads, length, values), q.dtype),
            (at.block(), (rows, heads, length), jnp.float32),
        ],
        size,
        options,
    )
    return out[..., :features], norm[..., None]


def backward(q, k, v, g, norm, delta, marks: Marks, *, options: Options):
    """Gradients of q, k and v; see `flash_tpu.backward`."""
    features, value_features = q.shape[-1], v.shape[-1]
    q, k, v, g = _widen(q, k, v, g)
    size, at, scalars, rest = _lay_out(q, k, v, marks)
    rows, heads, length, dim = q.shape
    values = v.shape[-1]
    arguments = (*scalars, q, k, v, g, norm[..., 0], delta[..., 0], *rest)
    (dq,) = _call(
        _queries_kernel,
        (rows, heads, length // size),
        arguments,
        [*at.scalars(), at.block(dim), at.keys_of_row(dim), at.keys_of_row(values)]
        + [at.block(values), at.block(), at.block(), *at.marks()],
        [(at.block(dim), q.shape, q.dtype)],
        size,
        options,
    )
    dk, dv = _call(
        _keys_kernel,
        (rows, k.shape[1], k.shape[2] // size),
        arguments,
        [*at.scalars(), at.queries_of_row(dim), at.block(dim), at.block(values)]
        + [at.queries_of_row(values), at.queries_of_row(), at.queries_of_row(), *at.marks()],
        [(at.block(dim), k.shape, k.dtype), (at.block(values), v.shape, v.dtype)],
        size,
        options,
    )
    return dq[..., :features], dk[..., :features], dv[..., :value_features]
