"""Meshes from a few words: `data=2,fsdp=4`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from instructjax.errors import UsageError
from instructjax.sharding.layout import lay_out
from instructjax.sharding.processes import check_alike

# Outermost first: neighbours on the last axes talk most, so they are nearest to each other.
AXES = ("data", "fsdp", "expert", "context", "tensor")


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes of a mesh's axes, in the order of `AXES`.

    Args:
      text: `NAME=SIZE` with commas between; one size may be -1: what the others leave.

    Raises:
      UsageError: an axis that there is not, twice the same, or a size that is no whole number.

    >>> parse_mesh("fsdp=4,data=2")
    {'data': 2, 'fsdp': 4}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise UsageError(
                f"mesh {text!r}: {name!r} is no axis", remedy=f"NAME=SIZE of {', '.join(AXES)}"
            )
        if name in sizes:
            raise UsageError(f"mesh {text!r} names {name} twice")
        whole = size.removeprefix("-").isascii() and size.removeprefix("-").isdigit()
        if not whole or (int(size) < 1 and int(size) != -1):
            raise UsageError(
                f"mesh {text!r}: the size of {name} is {size!r}",
                remedy="a whole number from 1, or -1 for what the other axes leave",
            )
        sizes[name] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise UsageError(f"mesh {text!r}: only one axis can take what the others leave")
    return {name: sizes[name] for name in AXES if name in sizes}


def size_mesh(shape: str | Mapping[str, int], count: int) -> dict[str, int]:
    """Sizes of the axes of a mesh of `count` devices.

    Args:
      shape: as for `parse_mesh`, or its result.
      count: of the devices.

    Raises:
      UsageError: the sizes do not multiply to the number of devices.

    >>> size_mesh("data=-1,fsdp=4", 8)
    {'data': 2, 'fsdp': 4}
    """
    sizes = parse_mesh(shape) if isinstance(shape, str) else dict(shape)
    given = math.prod(size for size in sizes.values() if size != -1)
    words = ",".join(f"{name}={size}" for name, size in sizes.items())
    has = f"a multiple of {given}" if -1 in sizes.values() else str(given)
    sizes = {name: count // given or 1 if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != count:
        raise UsageError(
            f"mesh {words} has {has} places, but there are {count} devices",
            remedy=f"sizes whose product is {count}, such as {_that_fits(sizes, count)}",
        )
    return sizes


def make_mesh(shape: str | Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, over whose axes the compiler splits computations by itself.

    Args:
      shape: as for `parse_mesh`, or its result.
      devices: in this order; by default all there are, laid out as `layout.lay_out` does.

    Raises:
      UsageError: the sizes do not multiply to the number of devices, or they cannot be laid out.

    >>> make_mesh("data=-1").axis_names
    ('data',)
    """
    sizes = size_mesh(shape, len(jax.devices() if devices is None else devices))
    if devices is None:
        return lay_out(sizes, jax.devices())
    grid = np.asarray(devices, dtype=object).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def choose_mesh(shape: str | None) -> Mesh | None:
    """The mesh asked for; by default one of all devices that the parameters are split over, or none
    where there is but one device, or this process is alone and its devices are a CPU's.

    Of several processes all must call this, at the same point.

    Raises:
      UsageError: see `make_mesh`; processes were asked for different ones or have different numbers
        of devices; or jax computes with 64 bits.

    >>> choose_mesh(None) is None
    True
    """
    if jax.config.read("jax_enable_x64"):
        raise UsageError(
            "JAX_ENABLE_X64 is set, and models compute with 32 bits", remedy="unset it"
        )
    devices = f"{jax.local_device_count()} x {jax.devices()[0].device_kind}"
    check_alike({"mesh": shape or "the default", "devices of a process": devices})
    if shape is not None:
        return make_mesh(shape)
    alone = jax.process_count() == 1
    if jax.device_count() == 1 or (alone and jax.default_backend() == "cpu"):
        return None
    return make_mesh("fsdp=-1")


def _that_fits(sizes: Mapping[str, int], count: int) -> str:
    """A mesh of the same axes and `count` places, near to what was asked for.

    >>> _that_fits({"data": 2, "tensor": 3}, 8)
    'data=4,tensor=2'
    """
    fitting: dict[str, int] = {}
    for name, size in reversed(list(sizes.items())):
        fitting[name] = math.gcd(count, size) if count % size == 0 else _divisor(count, size)
        count //= fitting[name]
    first = next(iter(sizes))
    fitting[first] *= count
    return ",".join(f"{name}={fitting[name]}" for name in sizes)


def _divisor(count: int, largest: int) -> int:
    return next(size for size in range(min(count, max(largest, 1)), 0, -1) if count % size == 0)
