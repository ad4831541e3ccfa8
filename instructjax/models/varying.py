"""Arrays inside a shard_map: over which axes of the mesh they differ from device to device."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array


class TableSplit(NamedTuple):
    """How the rows of the output table are split over axes that the compiler sees to.

    Attributes:
      axes: of the mesh; none if the table is whole.
      parts: in how many parts.
      mesh: of these axes, None within a shard_map.
    """

    axes: tuple[str, ...] = ()
    parts: int = 1
    mesh: Mesh | None = None


WHOLE_TABLE = TableSplit()


def vary_alike(*arrays: Array, but: Collection[str] = ()) -> list[Array]:
    """Under shard_map: all vary over the axes that any does, so that loops may carry their sums.

    The transpose of this cast adds up the gradient of a table that all devices share.

    Args:
      arrays: to be cast.
      but: axes that are left as they are.
    """
    axes = frozenset().union(*map(varying_axes, arrays)) - set(but)

    return [vary(x, axes) for x in arrays]


def vary(x: Array, axes: Collection[str]) -> Array:
    """Under shard_map: the same, varying over these axes too."""
    missing = tuple(sorted(set(axes) - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


def gather_alike(x: Array, axes: tuple[str, ...]) -> Array:
    """Under shard_map: parts along the first axis of x, as an array that all devices share.

    The transpose of this gives each device the gradient of its part.
    """
    try:
        return lax.all_gather(x, axes, tiled=True, to="invarying")
    except TypeError:  # JAX before 0.10 keeps it elsewhere
        from jax._src.lax.parallel import all_gather_invariant

        return all_gather_invariant(x, axes, tiled=True)


def varying_axes(x: Array) -> frozenset[str]:
    """Mesh axes of an enclosing shard_map over which x differs from device to device."""
    kind = jax.typeof(x)
    older = getattr(kind, "vma", None)  # where JAX before 0.10 keeps them
    return kind.manual_axis_type.varying if older is None else older  # type: ignore
