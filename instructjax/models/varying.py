"""Arrays inside a shard_map: over which axes of the mesh they differ from device to device."""

from __future__ import annotations

import jax
from jax import lax
from jaxtyping import Array


def vary_alike(*arrays: Array) -> list[Array]:
    """Under shard_map: all vary over the axes that any does, so that loops may carry their sums.

    The transpose of this cast adds up the gradient of a table that all devices share.
    """
    axes = frozenset().union(*map(_varying_axes, arrays))

    def cast(x):
        missing = tuple(sorted(axes - _varying_axes(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return [cast(x) for x in arrays]


def _varying_axes(x) -> frozenset[str]:
    """Mesh axes of an enclosing shard_map over which x differs from device to device."""
    kind = jax.typeof(x)
    older = getattr(kind, "vma", None)  # where JAX before 0.10 keeps them
    return kind.manual_axis_type.varying if older is None else older  # type: ignore
