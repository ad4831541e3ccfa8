"""Will it fit, how fast, on what: a task's program, looked at before there is any hardware."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructjax.models.config import DecoderConfig
from instructjax.planning.collectives import Collective, collect
from instructjax.planning.compiling import Overflow, compile_program
from instructjax.planning.estimate import (
    attention_form,
    device_flops,
    estimate_collectives,
    estimate_memory,
    estimate_traffic,
)
from instructjax.planning.flops import Form, head_rows
from instructjax.planning.hlo import Computation, Loop, count_runs, parse_hlo
from instructjax.planning.programs import build_program
from instructjax.planning.roofline import Times, estimate_times, utilization
from instructjax.planning.setting import Setting, check_setting
from instructjax.planning.topology import Topology, compiler_missing, open_devices
from instructjax.sharding.layout import crossing_axis, lay_out
from instructjax.sharding.mesh import size_mesh


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a step takes on each device.

    Attributes:
      model, num_params: whose.
      topology, setting: where and how.
      source: "compiled" for these devices; or "estimated" from shapes.
      memory: bytes by kind. Compiled: arguments exactly by shardings ("padding" is what the layout
        adds), and the compiler's numbers.
      capacity: bytes that a program may use; 0 where it is not known.
      flops, useful: operations; `useful` without what is computed twice or masked.
      bytes_moved: to and from memory; an estimate.
      attention: the form that it takes there: "flash" is the platform's kernel.
      kernel_calls: how often kernels of ours are called in a step of the compiled program; None
        where it was not compiled.
      collectives: what devices say to each other, the largest first.
      collectives_source: as `source`, of them and of the times that they take; "estimated" also
        where the compiler refuses a program that does not fit.
      times: at the chip's rates; None where they are not known.
      seconds: that compiling took.
      headroom: share of the capacity that is to stay free, as a compiler may find more than was
        estimated.
    """

    model: str
    num_params: int
    topology: Topology
    setting: Setting
    source: Literal["compiled", "estimated"]
    memory: dict[str, float]
    capacity: float
    flops: float
    useful: float
    bytes_moved: float
    attention: Form
    kernel_calls: float | None
    collectives: Sequence[Collective]
    collectives_source: Literal["compiled", "estimated"]
    times: Times | None
    seconds: float
    headroom: float = 0.0

    @property
    def needed(self) -> float:
        """Bytes of all kinds."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether a device has as much and the headroom; None where that is not known."""
        return self.needed <= self.capacity * (1 - self.headroom) if self.capacity else None

    @property
    def memory_fraction(self) -> float | None:
        """Share of its memory that a GPU's program needs, in hundredths, where that is more than
        JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says so; None where it is not, or the
        program does not fit.
        """
        chip = self.topology.chip
        if not self.fits or self.needed <= chip.taken * chip.memory:
            return None
        return math.ceil(100 * self.needed / chip.memory) / 100

    @property
    def tokens(self) -> int:
        """Of a step, all devices together."""
        return self.setting.batch * self.setting.length

    @property
    def utilization(self) -> float:
        """Share of the chip's peak that useful operations reach at best."""
        best = self.times.best if self.times else math.nan
        return utilization(self.useful, best, self.topology.chip.rate(self.setting.dtype))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        times = self.times
        return {
            "model": self.model,
            "num_params": self.num_params,
            "topology": str(self.topology),
            "chip": self.topology.chip.label,
            "chip_source": self.topology.chip.source,
            "num_devices": self.topology.num_devices,
            "task": self.setting.task,
            "mesh": dict(self.setting.mesh),
            "batch": self.setting.batch,
            "length": self.setting.length,
            "micro_batches": self.setting.micro_batches,
            "remat": self.setting.remat,
            "dtype": self.setting.dtype,
            "lora": None if self.setting.lora is None else dataclasses.asdict(self.setting.lora),
            "source": self.source,
            "memory_bytes": self.memory,
            "needed_bytes": self.needed,
            "capacity_bytes": self.capacity or None,
            "headroom_bytes": self.capacity * self.headroom if self.capacity else None,
            "fits": self.fits,
            "memory_fraction": self.memory_fraction,
            "flops_per_device": self.flops,
            "useful_flops_per_device": self.useful,
            "bytes_moved_per_device": self.bytes_moved,
            "attention": self.attention,
            "kernel_calls": self.kernel_calls,
            "collectives_source": self.collectives_source,
            "collectives": [
                {**dataclasses.asdict(each), "sent_bytes_per_device": each.sent}
                for each in self.collectives
            ],
            "seconds": None if times is None else times.parts,
            "seconds_at_best": None if times is None else times.best,
            "seconds_at_worst": None if times is None else times.worst,
            "bound": None if times is None else times.bound,
            "tokens_per_second_at_best": None if times is None else self.tokens / times.best,
            "utilization_at_best": None if times is None else self.utilization,
            "compile_seconds": self.seconds,
            "host_memory_bytes": peak_memory(),
        }


def make_plan(
    model: str,
    config: DecoderConfig,
    topology: Topology,
    setting: Setting,
    *,
    compile: bool = True,
) -> Plan:
    """Looks at what a task would do on these devices; nothing is run and no weight is read.

    Args:
      model: its name.
      config: the decoder.
      topology: the devices.
      setting: the task, batch and mesh.
      compile: compile the program for them, where that can be done; else estimate.

    Raises:
      UsageError: the mesh does not fit the devices, the model or the batch.
    """
    check_setting(config, setting)
    if not compile or compiler_missing(topology) is not None:
        return _estimated(model, config, topology, setting)
    devices = open_devices(topology)
    mesh = lay_out(size_mesh(setting.mesh, len(devices)), devices)
    program = build_program(config, setting, mesh)
    plan = _estimated(model, config, topology, setting)
    found = compile_program(program, topology.chip.platform)
    memory = {kind: plan.memory[kind] for kind in plan.memory if kind in _EXACT}
    exact = sum(memory.values())
    if isinstance(found, Overflow):
        memory["temporaries"] = max(found.needed - exact, plan.memory["temporaries"])
        return dataclasses.replace(
            plan,
            source="compiled",
            memory=memory,
            capacity=found.available,
            seconds=found.seconds,
        )
    memory["padding"] = found.arguments - exact
    memory["temporaries"] = found.temporaries
    memory["outputs"] = found.outputs - found.reused
    memory["code"] = found.code
    computations, entry = parse_hlo(found.text)
    runs = count_runs(computations, entry, _expectation(config, setting))
    crossing = None
    if topology.chip.platform == "tpu" and topology.slices > 1:
        crossing = list(setting.mesh)[crossing_axis(setting.mesh, topology.slices)]
    collectives = [
        dataclasses.replace(each, count=each.count * setting.programs)
        for each in collect(computations, runs, setting.mesh, crossing)
    ]
    return dataclasses.replace(
        plan,
        source="compiled",
        memory=memory,
        kernel_calls=_count_kernels(computations, runs) * setting.programs,
        collectives=collectives,
        collectives_source="compiled",
        times=estimate_times(
            topology,
            setting.mesh,
            dtype=setting.dtype,
            flops=plan.flops,
            bytes_moved=plan.bytes_moved,
            collectives=collectives,
        ),
        seconds=found.seconds,
    )


_EXACT = ("parameters", "optimizer", "batch")


def _estimated(model: str, config: DecoderConfig, topology: Topology, setting: Setting) -> Plan:
    start = time.monotonic()
    program = build_program(config, setting)
    platform = topology.chip.platform
    form, tile = attention_form(config, setting, platform)
    flops = device_flops(config, program, setting, form, tile, platform).total
    moved = estimate_traffic(config, program, setting, form)
    collectives = estimate_collectives(config, program, setting, topology)
    return Plan(
        model=model,
        num_params=config.num_params,
        topology=topology,
        setting=setting,
        source="estimated",
        memory=estimate_memory(config, program, setting, form, platform),
        capacity=topology.chip.memory,
        flops=flops,
        useful=device_flops(config, program, setting, form, tile, platform, useful=True).total,
        bytes_moved=moved,
        attention=form,
        kernel_calls=None,
        collectives=collectives,
        collectives_source="estimated",
        times=estimate_times(
            topology,
            setting.mesh,
            dtype=setting.dtype,
            flops=flops,
            bytes_moved=moved,
            collectives=collectives,
        ),
        seconds=time.monotonic() - start,
    )


def _expectation(config: DecoderConfig, setting: Setting):
    """How often loops run whose bound is data, for full rows that are scored throughout."""
    scans = 1 if setting.micro_batches > 1 else 0
    tiles = -(-setting.length // setting.tile)
    chunk = head_rows(setting.task)

    def expect(loop: Loop) -> float:
        if loop.in_layers <= scans and loop.within == 0:  # the head, chunk by chunk
            return float(math.ceil(setting.rows * setting.length / chunk))
        if loop.within == 0:  # attention, tile by tile of queries
            return setting.rows * tiles / setting.row_parts
        if loop.within == 1:  # and the tiles of keys before each
            return (tiles - 1) / 2
        return 1.0

    return expect


def _count_kernels(computations: Mapping[str, Computation], runs: Mapping[str, float]) -> float:
    return math.fsum(
        runs.get(name, 0.0)
        for name, computation in computations.items()
        for step in computation.values()
        if step.kind == "custom-call" and "pallas_call" in step.op_name
    )


def peak_memory() -> float:
    """Most bytes that this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) if sys.platform == "darwin" else most * 1024.0
