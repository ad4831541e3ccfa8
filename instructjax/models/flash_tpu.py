"""Pallas kernels of attention for TPUs: scores of a block of queries and keys stay on the chip.

Blocks of keys are visited in order, with a running softmax (Dao et al. 2022, FlashAttention), and
those that no query of a block sees are skipped: later ones, other sequences of the row, branches
that have ended, and tokens outside the window. The backward pass computes the probabilities again
from the saved log-normalizers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

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

_BLOCKS = (512, 256, 128)


def block_size(length: int) -> int | None:
    """Queries and keys a block for rows of `length` tokens; None if they do not divide into any.

    >>> block_size(2048), block_size(1792), block_size(100)
    (512, 256, None)
    """
    return next((size for size in _BLOCKS if length % size == 0), None)


class _Blocks(NamedTuple):
    """Sizes, and where the blocks of arrays lie.

    The grid is (row, head, block of queries, block of keys); for the gradient of keys (row, head of
    keys, block of keys, step over its heads of queries and their blocks). Blocks that see nothing
    for being too early or late are not read: the neighbour is asked for again.
    """

    size: int
    count: int
    group: int

    @classmethod
    def of(cls, q, k) -> _Blocks:
        length = q.shape[2]
        size = block_size(length)
        assert size is not None, f"rows of {length} tokens"
        return cls(size, length // size, q.shape[1] // k.shape[1])

    def queries(self, b, h, i, j, _):
        return b, h, i

    def their_keys(self, b, h, i, j, _):
        return b, lax.div(h, self.group), jnp.minimum(i, j)

    def keys(self, b, h, j, step, _):
        return b, h, j

    def their_queries(self, b, h, j, step, _):
        head, i = lax.div(step, self.count), lax.rem(step, self.count)
        return b, h * self.group + head, jnp.maximum(i, j)

    def arrays(self, q, v, of_q: Any, of_k: Any) -> list[pl.BlockSpec]:
        """Of queries, keys, values, and what is of each query in the place of a value."""
        dim, values = q.shape[-1], v.shape[-1]
        places = (dim, of_q), (dim, of_k), (values, of_k), (values, of_q)
        return [self.by_head(*place) for place in places]

    def by_head(self, width: int, at: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, self.size, width), lambda *g: (*at(*g), 0))

    def column(self, at: Any) -> pl.BlockSpec:
        """Of [B, 1, T, 1]: a number a row of the scores."""
        return pl.BlockSpec((1, 1, self.size, 1), lambda *g: (at(*g)[0], 0, at(*g)[2], 0))

    def row(self, at: Any) -> pl.BlockSpec:
        """Of [B, 1, T]: a number a column of the scores."""
        return pl.BlockSpec((1, 1, self.size), lambda *g: (at(*g)[0], 0, at(*g)[2]))

    def row_by_head(self, at: Any) -> pl.BlockSpec:
        """Of [B, H, 1, T]."""
        return pl.BlockSpec((1, 1, 1, self.size), lambda *g: (*at(*g)[:2], 0, at(*g)[2]))


def _forward_kernel(width, q, k, v, ends, q_depth, k_depth, out, norm, top, total, acc, *, options):
    i, j = pl.program_id(2), pl.program_id(3)
    size = q.shape[2]
    width = width[0] if options.windowed else None
    marks = ends[0], q_depth[0, 0], k_depth[0], width

    @pl.when(j == 0)
    def _():
        top[...], total[...], acc[...] = start_sums(*acc.shape)

    @pl.when(any_seen(i, j, size, *marks))
    def _():
        sums = top[...], total[...], acc[...]
        seen = mask_pairs(i, j, size, *marks)
        top[...], total[...], acc[...] = add_block(sums, q[0, 0], k[0, 0], v[0, 0], seen, options)

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        received, norm[0, 0] = finish_sums((top[...], total[...], acc[...]))
        out[0, 0] = received.astype(out.dtype)


def _queries_kernel(
    width, q, k, v, g, norm, delta, ends, q_depth, k_depth, dq, acc, *, options: Options
):
    i, j = pl.program_id(2), pl.program_id(3)
    size = q.shape[2]
    marks = ends[0], q_depth[0, 0], k_depth[0], width[0] if options.windowed else None

    @pl.when(j == 0)
    def _():
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    @pl.when(any_seen(i, j, size, *marks))
    def _():
        seen = mask_pairs(i, j, size, *marks)
        pairs = q[0, 0], k[0, 0], g[0, 0], v[0, 0]
        _, d_scores = slope_pairs(*pairs, seen, norm[0, 0], delta[0, 0], options)
        acc[...] += dot(d_scores.astype(k.dtype), k[0, 0], (1, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        dq[0, 0] = acc[...].astype(dq.dtype)


def _keys_kernel(
    width, q, k, v, g, norm, delta, ends, q_depth, k_depth, dk, dv, k_acc, v_acc, *, options
):
    """Scores with keys as rows, so that nothing has to be transposed."""
    j, step = pl.program_id(2), pl.program_id(3)
    size = q.shape[2]
    i = lax.rem(step, pl.num_programs(2))
    marks = ends[0, 0], q_depth[0], k_depth[0, 0], width[0] if options.windowed else None

    @pl.when(step == 0)
    def _():
        k_acc[...] = jnp.zeros(k_acc.shape, jnp.float32)
        v_acc[...] = jnp.zeros(v_acc.shape, jnp.float32)

    @pl.when(any_seen(i, j, size, *marks))
    def _():
        seen = mask_pairs(i, j, size, *marks, keys_first=True)
        pairs = k[0, 0], q[0, 0], v[0, 0], g[0, 0]
        weights, d_scores = slope_pairs(*pairs, seen, norm[0, 0], delta[0, 0], options)
        v_acc[...] += dot(weights.astype(g.dtype), g[0, 0], (1, 0))
        k_acc[...] += dot(d_scores.astype(q.dtype), q[0, 0], (1, 0))

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        dk[0, 0], dv[0, 0] = k_acc[...].astype(dk.dtype), v_acc[...].astype(dv.dtype)


def _call(kernel, grid, width, arguments, specs, outputs, scratch, options: Options):
    """The kernel over a grid; `width` is handed over before all else, as a scalar."""
    varying = jax.typeof(arguments[0]).manual_axis_type
    return pl.pallas_call(
        partial(kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=specs,
            out_specs=[spec for spec, _, _ in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
            for _, shape, dtype in outputs
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=options.interpret,
    )(width, *arguments)


def forward(q, k, v, ends: Marks, depth: Marks, width, *, options: Options):
    """(what each query sees [B, H, T, V], log-normalizers [B, H, T, 1])."""
    blocks = _Blocks.of(q, k)
    rows, heads, length, _ = q.shape
    values, of_q, of_k = v.shape[-1], blocks.queries, blocks.their_keys
    *inputs, out = blocks.arrays(q, v, of_q, of_k)
    return _call(
        _forward_kernel,
        (rows, heads, blocks.count, blocks.count),
        width,
        (q, k, v, ends.row, depth.column, depth.row),
        [*inputs, blocks.row(of_k), blocks.column(of_q), blocks.row(of_k)],
        [
            (out, (rows, heads, length, values), q.dtype),
            (blocks.by_head(1, of_q), (rows, heads, length, 1), jnp.float32),
        ],
        [(blocks.size, 1), (blocks.size, 1), (blocks.size, values)],
        options,
    )


def backward(q, k, v, g, norm, delta, ends: Marks, depth: Marks, width, *, options: Options):
    """Gradients of q, k and v.

    Args:
      g: of the output, [B, H, T, V].
      norm: log-normalizers, [B, H, T, 1].
      delta: g times the output, summed over features, less the gradient of `norm`.
    """
    blocks = _Blocks.of(q, k)
    rows, heads, _, dim = q.shape
    of_q, of_k = blocks.queries, blocks.their_keys
    (dq,) = _call(
        _queries_kernel,
        (rows, heads, blocks.count, blocks.count),
        width,
        (q, k, v, g, norm, delta, ends.row, depth.column, depth.row),
        [
            *blocks.arrays(q, v, of_q, of_k),
            *[blocks.by_head(1, of_q)] * 2,
            blocks.row(of_k),
            blocks.column(of_q),
            blocks.row(of_k),
        ],
        [(blocks.by_head(dim, of_q), q.shape, q.dtype)],
        [(blocks.size, dim)],
        options,
    )
    of_q, of_k = blocks.their_queries, blocks.keys
    of_arrays = blocks.arrays(q, v, of_q, of_k)
    dk, dv = _call(
        _keys_kernel,
        (rows, k.shape[1], blocks.count, blocks.group * blocks.count),
        width,
        (q, k, v, g, *(x.swapaxes(2, 3) for x in (norm, delta)))
        + (ends.column, depth.row, depth.column),
        [
            *of_arrays,
            *[blocks.row_by_head(of_q)] * 2,
            blocks.column(of_k),
            blocks.row(of_q),
            blocks.column(of_k),
        ],
        [(of_arrays[1], k.shape, k.dtype), (of_arrays[2], v.shape, v.dtype)],
        [(blocks.size, dim), (blocks.size, v.shape[-1])],
        options,
    )
    return dq, dk, dv
