"""Groups of devices by name, such as `v5e:16x16`, and their devices where a compiler knows them."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from instructjax.errors import UsageError
from instructjax.planning.chips import CHIPS, Chip
from instructjax.planning.gpu_targets import describe_gpu

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# GPUs of a node, that their own links join: at most.
_NODE = 8
# Devices that are planned for: beyond all there are.
_MOST = 1 << 20
# Slices of TPUs, ascending; in three dimensions larger ones are of multiples of 4.
# https://cloud.google.com/tpu/docs/v5e, v6e, v4, v5p and tpu7x
_SLICES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4)),
}
_ALIASES = {"v5": "v5p", "v5litepod": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e"}
_EXAMPLES = {
    "v4": "v4:2x2x2",
    "v5e": "v5e:16x16",
    "v5p": "v5p:2x4x4",
    "v6e": "v6e:8x8",
    "tpu7x": "tpu7x:2x2x1",
    "a100": "a100:8",
    "h100": "h100:8 or h100:2x8 (two nodes)",
    "b200": "b200:8",
    "cpu": "cpu:8",
}


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices that compute together.

    Attributes:
      chip: each of them.
      shape: of the torus, in chips; of GPUs (nodes, GPUs a node); of CPUs the number.
      slices: TPU slices, or nodes of GPUs, with the network between them.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """Of all slices."""
        within = math.prod(self.shape) * self.chip.parts
        return within if self.chip.platform == "gpu" else within * self.slices

    def __str__(self) -> str:
        many = self.slices > 1 and self.chip.platform == "tpu"
        return f"{self.slices} slices of {self.name}" if many else self.name


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Devices by the name of their chip and the shape of their arrangement.

    Args:
      text: CHIP:SHAPE, such as v5e:16x16, v5p:2x4x4, h100:8, h100:2x8 or cpu:8; GPUs by node, of
        at most eight each.
      slices: how many such slices, for TPUs.

    Raises:
      UsageError: no such chip, or a shape that it does not have.

    >>> parse_topology("v5e:16x16").num_devices, parse_topology("tpu7x:2x2x1").num_devices
    (256, 8)
    """
    name, _, shape = text.strip().lower().partition(":")
    chip = CHIPS.get(_ALIASES.get(name, name))
    if chip is None:
        near = difflib.get_close_matches(name, CHIPS, n=2, cutoff=0.4)
        known = ", ".join(_EXAMPLES[each] for each in near or _EXAMPLES)
        raise UsageError(
            f"{text!r} is no topology that is known",
            remedy=f"{'did you mean' if near else 'one like'} {known}"
            + (f"? There are {', '.join(CHIPS)}" if near else ""),
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        wrong = f"{text!r}: {shape!r} is no shape" if shape else f"{text!r} has no shape"
        raise UsageError(wrong, remedy=f"write it as {_EXAMPLES[chip.name]}")
    sizes = tuple(int(part) for part in shape.split("x"))
    allowed = (chip.dims,) if chip.dims else (1, 2) if chip.platform == "gpu" else (1,)
    if len(sizes) not in allowed:
        raise UsageError(
            f"{text!r}: {chip.label} has {' or '.join(map(str, allowed))} numbers in its shape",
            remedy=f"write it as {_EXAMPLES[chip.name]}",
        )
    if slices < 1:
        raise UsageError(f"{slices} slices of {text}", remedy="give 1 or more")
    if math.prod(sizes) * slices > _MOST:
        raise UsageError(
            f"{slices:,} x {text!r} is more than {_MOST:,} devices", remedy="give fewer"
        )
    if slices > 1 and chip.platform != "tpu":
        raise UsageError(f"{slices} slices of {text}", remedy="only TPUs come in several slices")
    if chip.platform == "gpu":
        sizes = sizes if len(sizes) == 2 else (1, *sizes)
        if sizes[1] > _NODE:
            nodes = -(-math.prod(sizes) // _NODE)
            raise UsageError(
                f"{text!r}: a node has {_NODE} GPUs at most",
                remedy=f"write nodes x GPUs a node, such as {chip.name}:{nodes}x{_NODE}",
            )
        return Topology(chip=chip, shape=sizes, slices=sizes[0])
    if chip.platform == "tpu" and not _is_slice(chip, sizes):
        small = ", ".join("x".join(map(str, each)) for each in _SLICES[chip.dims])
        more = f" and multiples of 4, {chip.most:,} chips at most" if chip.dims == 3 else ""
        raise UsageError(f"{text!r} is no slice of {chip.label}", remedy=f"there are {small}{more}")
    return Topology(chip=chip, shape=sizes, slices=slices)


def _is_slice(chip: Chip, sizes: tuple[int, ...]) -> bool:
    if tuple(sorted(sizes)) in _SLICES[chip.dims]:
        return True
    large = chip.dims == 3 and all(size % 4 == 0 for size in sizes)
    return large and math.prod(sizes) <= chip.most


def compiler_missing(topology: Topology) -> str | None:
    """What is to be installed to compile for these devices; None if nothing is missing."""
    platform = topology.chip.platform
    if platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        return "pip install 'instructjax[tpu]' (libtpu, 0.2 GB; no TPU is needed)"
    if platform == "gpu" and not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
        return "pip install 'instructjax[cuda-compiler]' (0.2 GB; no GPU is needed)"
    return None


def open_devices(topology: Topology) -> Sequence[Any]:
    """The devices, to compile for. Nothing can run on those of a TPU that is not there.

    Raises:
      UsageError: the compiler is not installed, or refuses the shape.
    """
    missing = compiler_missing(topology)
    if missing is not None:
        raise UsageError(f"there is no compiler for {topology}", remedy=missing)
    if topology.chip.platform == "cpu":
        return _open_cpus(topology.num_devices)
    if topology.chip.platform == "gpu":
        return _open_gpus(topology)
    return _open_tpus(topology)


def _open_tpus(topology: Topology) -> Sequence[Any]:
    # What libtpu would ask the host about, which has none; and several processes may compile.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental.topologies import get_topology_desc

    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"
    if math.prod(topology.shape) < 4:
        bounds = (*topology.shape, 1, 1)[:3]
        options["chips_per_host_bounds"] = bounds
    try:
        found = get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UsageError(
            f"libtpu knows no {topology}: {str(error).splitlines()[0]}",
            remedy=f"a shape such as {_EXAMPLES[topology.chip.name]}",
        ) from error
    return found.devices


def _open_gpus(topology: Topology) -> Sequence[Any]:
    from jax.experimental.topologies import get_topology_desc

    nodes, each = topology.shape
    try:
        found = get_topology_desc(
            platform="cuda",
            topology_name=topology.chip.name,
            topology=f"1x{nodes}x{each}",
            target_config=describe_gpu(topology.chip.name),
        )
    except NotImplementedError as error:  # the plugin has found no driver, and given up
        raise UsageError(
            f"JAX looks for GPUs that are there, and cannot compile for {topology} then",
            remedy="set JAX_PLATFORMS=cpu before JAX is used",
        ) from error
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UsageError(
            f"jax-cuda does not open {topology}: {str(error).splitlines()[0]}",
            remedy=f"pip install 'jax[cuda12-local]=={jax.__version__}', or --compile 0 estimates",
        ) from error
    return found.devices


def _open_cpus(count: int) -> Sequence[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UsageError(
            f"{count} virtual CPU devices were asked for, JAX has begun with {len(devices)}",
            remedy=f"set jax_num_cpu_devices to {count} before JAX is used",
        )
    return devices[:count]
