"""Which mesh, micro-batches and rematerialization: all of them estimated, the best compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from instructjax.errors import UsageError
from instructjax.models.config import DecoderConfig
from instructjax.models.remat import REMAT
from instructjax.planning.compiling import CompilerError
from instructjax.planning.plan import Plan, make_plan
from instructjax.planning.setting import Setting, check_model, check_setting, least_length
from instructjax.planning.topology import Topology
from instructjax.sharding.layout import crossing_axis
from instructjax.sharding.mesh import AXES

# Of a device: an estimate is to leave as much, since compilers may find more.
_HEADROOM = 0.1
# Or less: beyond as many times a device's memory, compiling is not worth it.
_FAR = 1.4


def list_settings(config: DecoderConfig, topology: Topology, setting: Setting) -> Iterator[Setting]:
    """Every mesh of data, fsdp, expert, context and tensor that the model and the batch fit, with
    every number of micro-batches and remat policy that makes a difference. Context is tried where
    rows are long enough to be split over it.

    Args:
      config, topology: what and where.
      setting: the task and the batch; its mesh, micro-batches and remat are not looked at.
    """
    for first in _first_settings(config, topology, setting):
        try:
            check_setting(config, first)
        except UsageError:
            continue
        if first.copies > 1:
            continue
        if setting.task == "score":
            yield first
            continue
        rows = setting.batch // first.parts("batch")
        for micro in (n for n in range(1, rows + 1) if rows % n == 0 and n & (n - 1) == 0):
            for remat in REMAT:
                yield dataclasses.replace(first, micro_batches=micro, remat=remat)


def _first_settings(
    config: DecoderConfig, topology: Topology, setting: Setting
) -> Iterator[Setting]:
    """Of every mesh that the model fits, whatever the rows."""
    for mesh in _meshes(config, topology.num_devices):
        try:
            crossing_axis(mesh, topology.slices if topology.chip.platform == "tpu" else 1)
            first = dataclasses.replace(setting, mesh=mesh, micro_batches=1)
            check_model(config, first)
        except UsageError:
            continue
        yield first


def _meshes(config: DecoderConfig, count: int) -> Iterator[dict[str, int]]:
    """Of all devices, each axis in the order of `sharding.AXES`."""
    for tensor in _divisors(count):
        for context in _divisors(count // tensor):
            left = count // tensor // context
            for expert in _divisors(left) if config.num_experts else (1,):
                for fsdp in _divisors(left // expert):
                    sizes = left // expert // fsdp, fsdp, expert, context, tensor
                    mesh = {n: size for n, size in zip(AXES, sizes, strict=True) if size > 1}
                    yield mesh or {"fsdp": 1}


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def rank(plans: list[Plan]) -> list[Plan]:
    """The fastest first; those that do not fit last, by what they need."""

    def order(plan: Plan) -> tuple[bool, float, float, float]:
        best, worst = _speed(plan)
        return plan.fits is False, plan.needed if plan.fits is False else best, worst, plan.needed

    return sorted(plans, key=order)


def _speed(plan: Plan) -> tuple[float, float]:
    """By which plans are compared: seconds at best, to microseconds, and at worst."""
    return (round(plan.times.best, 6), plan.times.worst) if plan.times else (plan.flops, 0.0)


def search(
    model: str, config: DecoderConfig, topology: Topology, setting: Setting, *, compile: int = 0
) -> list[Plan]:
    """Plans of all settings that can be, the best first.

    Args:
      model, config, topology: what and where.
      setting: the task and the batch.
      compile: how many of the best to compile; what does not fit is passed over for the next, what
        the compiler refuses is left out, and where fewer are estimated to fit, the nearest of the
        others are compiled.

    Raises:
      UsageError: no mesh fits the model and the batch.
      CompilerError: the compiler refuses all that it was given.
    """
    ranked = _estimate_all(model, config, topology, setting)
    if not ranked:
        raise _refuse(config, topology, setting)
    compiled: list[Plan] = []
    refused: list[CompilerError] = []
    left = list(ranked)
    while left and _is_near(left[0]) and len(compiled) + len(refused) < compile:
        best = left.pop(0)
        try:
            compiled.append(make_plan(model, config, topology, best.setting))
        except CompilerError as error:
            refused.append(error)
    if refused and not compiled:
        raise refused[0]
    return rank(compiled) + left if compile else ranked


def _is_near(plan: Plan) -> bool:
    return plan.fits is not False or plan.needed <= _FAR * plan.capacity


def _estimate_all(
    model: str, config: DecoderConfig, topology: Topology, setting: Setting
) -> list[Plan]:
    """Of all settings that can be, the best first; empty where there are none."""
    plans = (
        make_plan(model, config, topology, each, compile=False)
        for each in list_settings(config, topology, setting)
    )
    return rank([dataclasses.replace(plan, headroom=_HEADROOM) for plan in plans])


def _refuse(config: DecoderConfig, topology: Topology, setting: Setting) -> UsageError:
    """The error where no mesh takes these rows, with numbers of rows and tokens that one takes."""
    settings = list(_first_settings(config, topology, setting))
    remedies = []
    if parts := {each.parts("batch") for each in settings if each.copies == 1}:
        near = min(math.ceil(setting.batch / n) * n for n in parts)
        remedies.append(f"a --batch that divides by {_any_of(parts)}, such as {near:,}")
    lengths = (
        least_length(each.parts("sequence"), setting.length)
        for each in settings
        if each.copies > 1 and setting.batch % each.parts("batch") == 0
    )
    least = min(lengths, default=math.inf)
    if least <= config.max_positions:
        remedies.append(f"a --length of {least:,}, for rows split over context")
    return UsageError(
        f"no mesh of {topology.num_devices} devices takes {setting.batch:,} rows of "
        f"{setting.length:,} tokens",
        remedy=", or ".join(remedies) or "another number of devices",
    )


def _any_of(numbers: Iterable[int]) -> str:
    """The least of them, of which all others are multiples.

    >>> _any_of({4, 8, 16, 6})
    '4 or 6'
    """
    some = [n for n in sorted(numbers) if not any(n % m == 0 for m in numbers if m < n)]
    return " or ".join(map(str, some))


def find_nearest(plan: Plan, config: DecoderConfig) -> Plan | None:
    """Of the settings that are estimated to fit, the one that changes least and is fastest.

    What is changed least: remat and micro-batches, then the mesh. None if nothing fits,
    or no other mesh takes the batch.
    """
    wanted = plan.setting
    found = [
        each
        for each in _estimate_all(plan.model, config, plan.topology, wanted)
        if each.fits and each.setting != wanted
    ]

    def distance(each: Plan) -> tuple[bool, float, float]:
        same = dict(each.setting.mesh) == {k: v for k, v in wanted.mesh.items() if v > 1}
        return not same, *_speed(each)

    return min(found, key=distance, default=None)
