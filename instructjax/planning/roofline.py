"""From work to time: how long a step takes at least, and what bounds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from instructjax.planning.collectives import Collective
from instructjax.planning.topology import Topology
from instructjax.sharding.layout import crossing_axis


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a step by what they are spent on, each at the chip's full rate.

    Attributes:
      compute: of products.
      memory: of bytes moved to and from the device's memory.
      links: of collectives, by the axes of the mesh that they go over.
    """

    compute: float
    memory: float
    links: Mapping[tuple[str, ...], float]

    @property
    def parts(self) -> dict[str, float]:
        """All of them by name."""
        talk = {f"talk over {'+'.join(axes)}": seconds for axes, seconds in self.links.items()}
        return {"compute": self.compute, "memory": self.memory, **talk}

    @property
    def best(self) -> float:
        """If all of it goes on at the same time."""
        return max(self.parts.values())

    @property
    def worst(self) -> float:
        """If one comes after the other."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def estimate_times(
    topology: Topology,
    mesh: Mapping[str, int],
    *,
    dtype: str,
    flops: float,
    bytes_moved: float,
    collectives: Iterable[Collective],
) -> Times | None:
    """The least times of what a device does in a step; None without the chip's rates."""
    chip = topology.chip
    if not chip.rate(dtype):
        return None
    links: dict[tuple[str, ...], float] = {}
    for each in collectives:
        seconds = talk_seconds(
            topology, mesh, each.axes, each.group, each.sent, network=each.network
        )
        links[each.axes] = links.get(each.axes, 0.0) + seconds
    return Times(compute=flops / chip.rate(dtype), memory=bytes_moved / chip.bandwidth, links=links)


def talk_seconds(
    topology: Topology,
    mesh: Mapping[str, int],
    axes: tuple[str, ...],
    group: int,
    sent: float,
    *,
    network: bool = False,
) -> float:
    """How long a device takes to send so many bytes around a ring of `group` devices.

    A ring of TPUs goes over as few dimensions of the torus as hold it, both ways where they close
    (16 chips of v5e and v6e, multiples of 4 in every dimension of the others). Where it crosses
    slices or nodes, each device sends over the network what its own slice does not have: the part
    that is left when the devices within the slice share the work. A group that is smaller than its
    axes lies within a slice. With `network` every device of the group is in another slice.
    """
    chip = topology.chip
    if network:
        return sent / chip.network
    whole = group == math.prod(mesh[axis] for axis in axes)
    parts = count_parts(topology, mesh, axes) if whole else 1
    within = max(group // parts, 1)
    seconds = sent / (within * chip.network) if parts > 1 else 0.0
    if within < 2:
        return seconds
    if not chip.dims:
        return seconds + sent / chip.link
    cube = chip.dims == 3 and all(size % 4 == 0 for size in topology.shape)
    rate, held = 0.0, chip.parts
    for size in sorted(topology.shape, reverse=True):
        closed = cube or (chip.dims == 2 and size == 16)
        rate += chip.link * (2 if closed else 1)
        held *= size
        if held >= within:
            break
    return seconds + sent / rate


def count_parts(topology: Topology, mesh: Mapping[str, int], axes: tuple[str, ...]) -> int:
    """Over how many slices or nodes those devices lie that differ along these axes.

    GPUs are laid out node by node, in the order of the mesh.

    >>> from instructjax.planning.topology import parse_topology
    >>> mesh = {"data": 2, "fsdp": 4, "tensor": 4}
    >>> [count_parts(parse_topology("h100:4x8"), mesh, (axis,)) for axis in mesh]
    [2, 2, 1]
    """
    slices = topology.slices
    if slices == 1:
        return 1
    if topology.chip.platform == "tpu":
        return slices if list(mesh)[crossing_axis(mesh, slices)] in axes else 1
    sizes = tuple(mesh.values())
    places = np.arange(math.prod(sizes)).reshape(sizes)
    places = places[tuple(slice(None) if axis in axes else 0 for axis in mesh)]
    return len(np.unique(places // topology.shape[1]))


def utilization(useful: float, seconds: float, rate: float) -> float:
    """Share of the chip's peak that useful operations would reach (model FLOPs utilization)."""
    return useful / (seconds * rate) if seconds and rate else math.nan
