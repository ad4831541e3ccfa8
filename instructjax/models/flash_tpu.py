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
from jaxtyping import Array

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
    for being too early or late are not read: the neighbour is asked for again. Which blocks of the
    row the queries' are is read from memory, see `Marks.places`.
    """

    size: int
    queries_count: int
    keys_count: int
    group: int

    @classmethod
    def of(cls, q, k, marks: Marks) -> _Blocks:
        size = block_size(marks.piece)
        assert size is not None, f"pieces of rows of {marks.piece} tokens"
        return cls(size, q.shape[2] // size, k.shape[2] // size, q.shape[1] // k.shape[1])

    def queries(self, b, h, i, j, *_):
        return b, h, i

    def their_keys(self, b, h, i, j, width, places, firsts):
        return b, lax.div(h, self.group), jnp.minimum(places[i], j)

    def keys(self, b, h, j, step, *_):
        return b, h, j

    def their_queries(self, b, h, j, step, width, places, firsts):
        head, i = lax.div(step, self.queries_count), lax.rem(step, self.queries_count)
        i = jnp.minimum(jnp.maximum(i, firsts[j]), self.queries_count - 1)
        return b, h * self.group + head, i

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


def _forward_kernel(
    width, places, _, q, k, v, ends, q_depth, k_depth, out, norm, top, total, acc, *, options
):
    i, j = places[pl.program_id(2)], pl.program_id(3)
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
    width, places, _, q, k, v, g, norm, delta, ends, q_depth, k_depth, dq, acc, *, options
):
    i, j = places[pl.program_id(2)], pl.program_id(3)
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
    width,
    places,
    _,
    q,
    k,
    v,
    g,
    norm,
    delta,
    ends,
    q_depth,
    k_depth,
    dk,
    dv,
    k_acc,
    v_acc,
    *,
    options: Options,
):
    """Scores with keys as rows, so that nothing has to be transposed."""
    j, step = pl.program_id(2), pl.program_id(3)
    size = q.shape[2]
    i = places[lax.rem(step, places.shape[0])]
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


def _call(kernel, grid, scalars, arguments, specs, outputs, scratch, options: Options):
    """The kernel over a grid; `scalars` are handed over before all else."""
    varying = jax.typeof(arguments[0]).manual_axis_type
    return pl.pallas_call(
        partial(kernel, options=options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
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
    )(*scalars, *arguments)


def _lay_out(marks: Marks, size: int) -> tuple[tuple[Array, ...], Array, Array, Array]:
    """Scalars, and `ends`, depths of queries and of keys as [B, 1, T]."""
    scalars = marks.width, *marks.places(size)
    return scalars, marks.ends[:, None], marks.q_depth[:, None], marks.depth[:, None]


def forward(q, k, v, marks: Marks, *, options: Options):
    """(what each query sees [B, H, Q, V], log-normalizers [B, H, Q, 1])."""
    blocks = _Blocks.of(q, k, marks)
    rows, heads, length, _ = q.shape
    values, of_q, of_k = v.shape[-1], blocks.queries, blocks.their_keys
    *inputs, out = blocks.arrays(q, v, of_q, of_k)
    scalars, ends, q_depth, k_depth = _lay_out(marks, blocks.size)
    return _call(
        _forward_kernel,
        (rows, heads, blocks.queries_count, blocks.keys_count),
        scalars,
        (q, k, v, ends, q_depth[..., None], k_depth),
        [*inputs, blocks.row(of_k), blocks.column(of_q), blocks.row(of_k)],
        [
            (out, (rows, heads, length, values), q.dtype),
            (blocks.by_head(1, of_q), (rows, heads, length, 1), jnp.float32),
        ],
        [(blocks.size, 1), (blocks.size, 1), (blocks.size, values)],
        options,
    )


def backward(q, k, v, g, norm, delta, marks: Marks, *, options: Options):
    """Gradients of q, k and v.

    Args:
      q, k, v: queries [B, H, Q, D], and keys and values of the row, [B, K, T, D] and [B, K, T, V].
      g: of the output, [B, H, Q, V].
      norm: log-normalizers, [B, H, Q, 1].
      delta: g times the output, summed over features, less the gradient of `norm`.
      marks: who sees whom.
      options: of the kernel.
    """
    blocks = _Blocks.of(q, k, marks)
    rows, heads, _, dim = q.shape
    of_q, of_k = blocks.queries, blocks.their_keys
    scalars, ends, q_depth, k_depth = _lay_out(marks, blocks.size)
    (dq,) = _call(
        _queries_kernel,
        (rows, heads, blocks.queries_count, blocks.keys_count),
        scalars,
        (q, k, v, g, norm, delta, ends, q_depth[..., None], k_depth),
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
        (rows, k.shape[1], blocks.keys_count, blocks.group * blocks.queries_count),
        scalars,
        (q, k, v, g, *(x.swapaxes(2, 3) for x in (norm, delta)))
        + (ends[..., None], q_depth, k_depth[..., None]),
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
