"""Where the places of a mesh lie on TPUs: devices with the coordinates of real ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import jax
import pytest

from instructjax.errors import UsageError
from instructjax.sharding import make_mesh
from instructjax.sharding.layout import crossing_axis, lay_out
from instructjax.sharding.mesh import size_mesh

V5E, V5P, V6E = "TPU v5 lite", "TPU v5", "TPU v6 lite"


@dataclass(frozen=True)
class Device:
    """What tells where a device of a TPU is."""

    id: int
    device_kind: str
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"

    @property
    def process_index(self) -> int:
        return self.id // 4


def make_devices(kind: str, shape: tuple[int, ...], slices: int = 1) -> list[Device]:
    """Slices in order, and the devices of each with x first."""
    ranges = [range(n) for n in (*shape, 1, 1)[:3]]
    places = itertools.product(range(slices), *reversed(ranges))
    return [Device(id, kind, (x, y, z), at) for id, (at, z, y, x) in enumerate(places)]


def hops(one: Device, other: Device) -> int:
    assert one.slice_index == other.slice_index
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


@pytest.mark.parametrize(
    ("kind", "shape", "slices", "mesh"),
    [
        (V5P, (4, 4, 4), 1, "fsdp=16,tensor=4"),
        (V5P, (4, 4, 4), 1, "fsdp=32,tensor=2"),
        (V5P, (4, 4, 4), 1, "data=2,fsdp=32"),
        (V5P, (4, 4, 4), 1, "fsdp=8,tensor=8"),
        (V6E, (4, 4), 1, "fsdp=8,tensor=2"),
        (V6E, (16, 16), 1, "fsdp=64,tensor=4"),
        (V5E, (16, 16), 1, "fsdp=64,tensor=4"),
        (V5E, (4, 4), 2, "data=2,fsdp=16"),
        (V5E, (4, 4), 2, "fsdp=-1"),
        (V5E, (4, 4), 2, "fsdp=8,tensor=4"),
        (V6E, (4, 4), 4, "data=4,fsdp=8,tensor=2"),
        (V5P, (2, 2, 4), 3, "data=6,fsdp=2,tensor=4"),
    ],
)
def test_every_mesh_of_all_devices_can_be_laid_out(monkeypatch, kind, shape, slices, mesh) -> None:
    """By the verbs; the last axis stays within a slice, among neighbours."""
    devices = make_devices(kind, shape, slices)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    made = make_mesh(mesh)
    sizes = size_mesh(mesh, len(devices))
    assert dict(made.shape) == sizes
    assert set(made.devices.flat) == set(devices)
    if len(sizes) > 1:
        for group in made.devices.reshape(-1, made.devices.shape[-1]):
            near = [hops(a, b) for a, b in itertools.pairwise(group)]
            assert len({each.slice_index for each in group}) == 1
            # A plane or a ring may turn back to its next row.
            assert sum(near) <= (len(group) - 1) * max(2, math.isqrt(len(group)))


def test_only_the_first_axis_that_takes_them_crosses_slices() -> None:
    devices = make_devices(V5E, (4, 4), 2)
    grid = lay_out({"data": 4, "fsdp": 8}, devices).devices
    assert [{d.slice_index for d in row} for row in grid] == [{0}, {0}, {1}, {1}]
    grid = lay_out({"data": 1, "fsdp": 32}, list(reversed(devices))).devices
    assert [d.slice_index for d in grid[0]] == [0] * 16 + [1] * 16
    assert crossing_axis({"data": 3, "fsdp": 8}, 2) == 1


def test_slices_that_no_axis_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="no axis of the mesh divides by 4 slices; give data=4"):
        lay_out({"data": 2, "fsdp": 2, "tensor": 2}, make_devices(V5E, (2, 1), 4))


def test_devices_that_form_no_torus_are_refused() -> None:
    devices = make_devices(V5P, (4, 4, 4))
    with pytest.raises(UsageError, match="fsdp=62 cannot be .* 62 devices .* no whole torus; use"):
        lay_out({"fsdp": 62}, devices[:-2])
    two = make_devices(V5E, (4, 4), 2)
    with pytest.raises(UsageError, match="slices of 12 and 16 devices"):
        lay_out({"data": 2, "fsdp": 14}, two[4:])


def test_devices_without_a_torus_keep_their_order() -> None:
    grid = lay_out({"data": 2, "fsdp": 4}, jax.devices()).devices
    assert [d.id for d in grid.flat] == [d.id for d in jax.devices()]
