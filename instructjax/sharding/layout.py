"""Where the places of a mesh lie: near each other within a slice, few across the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from instructjax.errors import UsageError


def lay_out(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices whose last axes lie on nearest neighbours.

    Several TPU slices lie along the first axis that their number divides, so that only it crosses
    the network. Within a slice an axis of the torus may be split over several of the mesh.

    Args:
      sizes: of the mesh's axes; their product is the number of devices.
      devices: in any order.

    Raises:
      UsageError: no axis takes the slices, or the devices form no whole torus.

    >>> import jax
    >>> dict(lay_out({"data": 1}, jax.devices()[:1]).shape)
    {'data': 1}
    """
    slices = _by_slice(devices)
    counts = sorted({len(each) for each in slices})
    if len(counts) > 1:
        raise UsageError(
            f"slices of {' and '.join(map(str, counts))} devices make no mesh together",
            remedy="use slices of the same topology",
        )
    at = crossing_axis(sizes, len(slices))
    inner = list(sizes.values())
    inner[at] //= len(slices)
    grid = np.concatenate([_place(sizes, inner, each) for each in slices], axis=at)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def crossing_axis(sizes: Mapping[str, int], slices: int) -> int:
    """Which axis of a mesh lies over several slices.

    Raises:
      UsageError: none has a size that their number divides.

    >>> crossing_axis({"data": 3, "fsdp": 8}, 2)
    1
    """
    for at, size in enumerate(sizes.values()):
        if size % slices == 0:
            return at
    raise UsageError(
        f"no axis of the mesh divides by {slices} slices",
        remedy=f"give data={slices} or a multiple of it",
    )


def _by_slice(devices: Sequence[Any]) -> list[list[Any]]:
    # Others have a slice_index too, but no torus within it: their own order is as good.
    if devices[0].platform != "tpu":
        return [list(devices)]
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    return [slices[index] for index in sorted(slices)]


def _place(sizes: Mapping[str, int], inner: Sequence[int], devices: list[Any]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        words = ",".join(f"{name}={size}" for name, size in sizes.items())
        listed = "jax_devices" in str(error)  # as long as there are devices
        raise UsageError(
            f"mesh {words} cannot be laid out on {len(devices)} devices of "
            f"{devices[0].device_kind}: {'they form no whole torus' if listed else error}",
            remedy="use all devices of a slice, and one device a chip where chips allow it",
        ) from error
