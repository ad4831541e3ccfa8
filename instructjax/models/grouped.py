"""Rows times a matrix that depends on the row's group: the products of experts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from instructjax.models.linear import precision_of
from instructjax.models.varying import vary_alike

# Rows a product. A larger tile wastes more where a group ends; few rows in all need no large one.
_TILE, _SMALL, _FEW = 64, 8, 256


def grouped_matmul(
    rows: Float[Array, "M inner"],
    kernels: Float[Array, "X inner outer"],
    sizes: Int[Array, " X"],
) -> Float[Array, "M outer"]:
    """Each row times the matrix of its group, at the precision of the rows' dtype.

    `lax.ragged_dot` where the platform has kernels for it. On CPU it multiplies every row by every
    group's matrix, so there the rows of each group are multiplied tile by tile: 3 times faster with
    8 groups, 20 times with 32.

    Args:
      rows: sorted by group.
      kernels: a matrix a group.
      sizes: rows of each group; they add up to M.

    >>> rows, kernels = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[[10.0]], [[100.0]]])
    >>> grouped_matmul(rows, kernels, jnp.array([1, 2])).tolist()
    [[10.0], [200.0], [300.0]]
    """
    operands = vary_alike(rows, kernels, sizes)
    return lax.platform_dependent(*operands, cpu=_tiled, default=_ragged)


def _ragged(rows, kernels, sizes):
    return lax.ragged_dot(rows, kernels, sizes, precision=precision_of(rows.dtype))


@jax.custom_vjp
def _tiled(rows, kernels, sizes):
    return _multiply(rows, kernels, sizes)


def _tiles(sizes: Int[Array, " X"], tile: int):
    """How many tiles there are, and a function from a tile to its group, first row and stop."""
    tiles = (sizes + tile - 1) // tile
    last_tile, last_row = jnp.cumsum(tiles), jnp.cumsum(sizes)

    def find(i):
        group = (last_tile <= i).sum()  # jnp.searchsorted fails where only some axes are manual
        start = last_row[group] - sizes[group] + (i - last_tile[group] + tiles[group]) * tile
        return group, start, last_row[group]

    return last_tile[-1], find


def _tile_for(rows: Array) -> int:
    return _TILE if len(rows) > _FEW else _SMALL


def _multiply(rows, kernels, sizes):
    tile = _tile_for(rows)
    count, find = _tiles(sizes, tile)
    padded = jnp.pad(rows, ((0, tile), (0, 0)))
    product = partial(jnp.matmul, precision=precision_of(rows.dtype))

    def step(i, out):
        group, start, _ = find(i)
        part = product(lax.dynamic_slice_in_dim(padded, start, tile), kernels[group])
        # Rows past the group's own are written over by the groups that follow.
        return lax.dynamic_update_slice_in_dim(out, part, start, 0)

    out = jnp.zeros_like(padded[:, :1]) + jnp.zeros_like(kernels[0, :1])
    return lax.fori_loop(jnp.zeros_like(count), count, step, out)[: len(rows)]


def _forward(rows, kernels, sizes):
    return _multiply(rows, kernels, sizes), (rows, kernels, sizes)


def _backward(saved, d_out):
    rows, kernels, sizes = saved
    d_rows = _multiply(d_out, kernels.swapaxes(1, 2), sizes)
    tile = _tile_for(rows)
    count, find = _tiles(sizes, tile)
    rows, d_out = (jnp.pad(x, ((0, tile), (0, 0))) for x in (rows, d_out))
    product = partial(
        jnp.matmul, precision=precision_of(rows.dtype), preferred_element_type=jnp.float32
    )

    def step(i, d_kernels):
        group, start, stop = find(i)
        own = (start + jnp.arange(tile) < stop)[:, None]
        part = jnp.where(own, lax.dynamic_slice_in_dim(rows, start, tile), 0)
        part = product(part.T, lax.dynamic_slice_in_dim(d_out, start, tile))
        old = lax.dynamic_index_in_dim(d_kernels, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(d_kernels, old + part, group, 0)

    d_kernels = jnp.zeros_like(kernels, jnp.float32)
    d_kernels = lax.fori_loop(jnp.zeros_like(count), count, step, d_kernels)
    return d_rows, d_kernels.astype(kernels.dtype), None


_tiled.defvjp(_forward, _backward)
