"""What devices say to each other: every collective of a program, its size, axis and number."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from instructjax.errors import InstructJaxError
from instructjax.models.spmd import SUM
from instructjax.planning.hlo import (
    Computation,
    Expect,
    Instruction,
    array_bytes,
    count_runs,
    parse_hlo,
    tuple_parts,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# As libtpu spells what goes from slice to slice, on a host's sends.
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "RAGGED_ALL_TO_ALL": "ragged-all-to-all",
    "COLLECTIVE_PERMUTE": "collective-permute",
    "ONE_TO_ONE": "collective-permute",
}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives that are alike.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, over which devices talk.
      group: how many devices talk with each other.
      num_bytes: of one: of the whole that is gathered, reduced or scattered, or that a device
        sends.
      count: how often a step does it.
      where: what of the traced function it is in.
      network: each of the group is in another slice; False: the group lies as the mesh does.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    num_bytes: float
    count: float
    where: str = ""
    network: bool = False

    @property
    def sent(self) -> float:
        """Bytes that each device sends over its links in a step, by the best ring algorithm."""
        share = (self.group - 1) / self.group
        once = {
            "all-reduce": 2 * share,
            "collective-permute": 1.0,
        }.get(self.kind, share)
        return once * self.num_bytes * self.count


def find_collectives(
    text: str,
    mesh: Mapping[str, int],
    expect: Expect = lambda loop: 1.0,
    crossing: str | None = None,
) -> list[Collective]:
    """The collectives of a compiled program, those in loops as often as the loops run.

    Args:
      text: of the optimized program.
      mesh: sizes of its axes, in order.
      expect: see `count_runs`.
      crossing: the axis that lies over several slices.
    """
    computations, entry = parse_hlo(text)
    return collect(computations, count_runs(computations, entry, expect), mesh, crossing)


def collect(
    computations: Mapping[str, Computation],
    runs: Mapping[str, float],
    mesh: Mapping[str, int],
    crossing: str | None = None,
) -> list[Collective]:
    """As `find_collectives`, of a parsed program. The largest traffic first.

    Raises:
      InstructJaxError: a collective is in a computation that nothing is seen to call, or slices
        send each other what is not known.
    """
    found: dict[tuple, float] = {}
    chains: set[tuple[str, str]] = set()
    for name, computation in computations.items():
        for step in computation.values():
            network = step.kind == "send" and "_xla_megascale_transfer_type" in step.rest
            kind = _slice_kind(step) if network else step.kind.removesuffix("-start")
            if kind == "all-reduce" and "all-reduce-scatter" in name:
                kind = "reduce-scatter"  # as TPUs spell it: a fusion that keeps one part
            if kind not in KINDS or step.kind.endswith("-done"):
                continue
            if name not in runs:
                raise InstructJaxError(
                    f"the compiled program has {step.kind} in {name}, which nothing known calls",
                    remedy="--compile 0 estimates what devices say",
                )
            chain = re.search(r'chain_id="(\w+)"', step.rest)
            channel = re.search(r"channel_id=(\d+)", step.rest)
            if chain and channel:
                # TPUs do parts of a collective beside parts of a computation; each has its name
                if (chain[1], channel[1]) in chains:
                    continue
                chains.add((chain[1], channel[1]))
            if network:
                axes, group = (crossing,) if crossing else (), _count_slices(step)
            else:
                axes, group = _find_axes(step, mesh)
            if group < 2:
                continue
            size = _size_of(step, kind, group)
            source = computation.get(step.operands[0]) if network else step
            where = _place(_op_name(source, computation))
            key = (kind, axes, group, size, where, network)
            found[key] = found.get(key, 0.0) + runs[name]
    made = [
        Collective(
            kind=kind,
            axes=axes,
            group=group,
            num_bytes=size,
            count=count,
            where=where,
            network=network,
        )
        for (kind, axes, group, size, where, network), count in found.items()
    ]
    return sorted(made, key=lambda each: -each.sent)


def _slice_kind(step: Instruction) -> str:
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', step.rest)
    kind = _BETWEEN_SLICES.get(found[1] if found else "")
    if kind is None:
        raise InstructJaxError(
            f"slices send each other {found[1] if found else 'something'}, which is not known",
            remedy="--compile 0 estimates what devices say",
        )
    return kind


def _count_slices(step: Instruction) -> int:
    """How many slices talk: of a target such as {1,2}x{0:3}, slices 1 and 2, devices 0 to 3."""
    found = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x', step.rest)
    if found is None:
        raise InstructJaxError(
            "the compiled program does not say which slices talk",
            remedy="--compile 0 estimates what devices say",
        )
    ranges = [[int(end) for end in part.split(":")] for part in found[1].split(",")]
    return sum(ends[-1] - ends[0] + 1 for ends in ranges)


def _size_of(step: Instruction, kind: str, group: int) -> float:
    if step.kind == "send":
        size = sum(array_bytes(tuple_parts(step.shape)[0]))  # (what is sent, context, token)
        return size * (group if kind == "all-gather" else 1)
    if step.kind.endswith("-start") and kind != "all-reduce":
        # (operands, results, context), each one array or several
        return max(sum(array_bytes(part)) for part in tuple_parts(step.shape))
    total = step.num_bytes
    return total * group if step.kind.startswith("reduce-scatter") else total


def _op_name(step: Instruction | None, computation: Computation) -> str:
    """That of an instruction; where the compiler has made it of others and given it none, that of
    the nearest before it."""
    near, seen = [step], set()
    for each in near:
        if each is not None and each.op_name:
            return each.op_name
        found = set(each.operands if each is not None else ()) - seen
        seen |= found
        near += [computation.get(name) for name in sorted(found)]
    return ""


def _place(op_name: str) -> str:
    """forward, backward, again (computed once more for the backward pass), update, or ""."""
    if not op_name:
        return ""
    if SUM in op_name:
        return "backward"
    if "rematted_computation" in op_name:
        return "again"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name or "shard_map" in op_name else "update"


def _find_axes(step: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Axes along which the devices of a group differ, and how many devices it has."""
    sizes = tuple(mesh.values())
    groups = _groups(step.rest, math.prod(sizes))
    places = np.stack(np.unravel_index(groups, sizes), -1)  # [groups, devices, axes]
    differ = (places != places[:, :1]).any((0, 1))
    axes = tuple(name for name, varies in zip(mesh, differ, strict=True) if varies)
    if "source_target_pairs" in step.rest:
        return axes, math.prod(mesh[axis] for axis in axes)
    return axes, groups.shape[1]


def _lists(text: str) -> list[list[int]]:
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", text)]


def _groups(rest: str, count: int) -> np.ndarray:
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", rest)
    if pairs:
        return np.array(_lists(pairs[1]))
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", rest)
    if listed:
        rows = _lists(listed[1])
        widest = max(map(len, rows))
        return np.array([row for row in rows if len(row) == widest])
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if tiled:
        shape, of = ([int(n) for n in tiled[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(of)).reshape(of)
        if tiled[3]:
            ids = ids.transpose([int(n) for n in tiled[3].split(",")])
        return ids.reshape(shape)
    return np.arange(count)[None]  # no groups: all together
