"""A compiled program's text: its computations, and how often each runs.

XLA's own counts take the body of a loop once. Here each computation is counted as often as it runs:
the bound of a loop is the constant that its condition compares with, and of loops whose bound is
data, the caller says what to expect.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_BYTES = {
    "pred": 1.0,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1.0,
    "u8": 1.0,
    "s16": 2.0,
    "u16": 2.0,
    "s32": 4.0,
    "u32": 4.0,
    "s64": 8.0,
    "u64": 8.0,
    "bf16": 2.0,
    "f16": 2.0,
    "f32": 4.0,
    "f64": 8.0,
    "c64": 8.0,
    "c128": 16.0,
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|condition|select|scatter|\w+_computations?)="
    r"(?:%?([\w.\-]+)|\{([^}]*)\})"
)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: its result.
      kind: such as "all-gather" or "fusion".
      shape: of the result, as text; a tuple's in parentheses.
      operands: names.
      rest: the attributes, as text.
      root: it is the computation's result.
    """

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    @property
    def num_bytes(self) -> float:
        """Of the result, all of a tuple's parts together."""
        return sum(array_bytes(self.shape), 0.0)

    @property
    def op_name(self) -> str:
        """Where in the traced function it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


def array_bytes(shape: str) -> list[float]:
    """Bytes of each array in the text of a shape, without padding.

    >>> array_bytes("(f32[2,3]{1,0:T(8,128)}, s32[])")
    [24.0, 4.0]
    """
    return [
        _BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _ARRAY.findall(shape)
        if kind in _BYTES
    ]


def tuple_parts(shape: str) -> list[str]:
    """The parts of a tuple's shape, themselves tuples perhaps; of another shape, itself.

    >>> tuple_parts("((f32[2]{0}, s32[]), f32[4,2]{1,0:T(8,128)})")
    ['(f32[2]{0}, s32[])', 'f32[4,2]{1,0:T(8,128)}']
    """
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for char in shape[1:-1]:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def parse_hlo(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The computations of a program by name, and the name of the one that it begins with."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            words = line.split()
            name = words[1 if words[0] == "ENTRY" else 0].lstrip("%")
            current = computations.setdefault(name, {})
            entry = name if words[0] == "ENTRY" else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (head := _HEAD.match(line)):
            made = _read(line[head.end() :], head[2], head[1] is not None)
            if made is not None:
                current[made.name] = made
    return computations, entry


def _read(text: str, name: str, root: bool) -> Instruction | None:
    stop = _matching(text) if text.startswith("(") else text.find(" ")
    shape, rest = text[:stop], text[stop:].lstrip()
    kind, opened, rest = rest.partition("(")
    if stop < 1 or not opened:
        return None
    end = _matching("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    if kind in ("constant", "parameter"):
        return Instruction(name=name, kind=kind, shape=shape, operands=(), rest=rest, root=root)
    return Instruction(
        name=name, kind=kind, shape=shape, operands=operands, rest=rest[end:], root=root
    )


def _matching(text: str) -> int:
    """Just past the parenthesis that closes the first one."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return at + 1
    return len(text)


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop whose bound is data.

    Attributes:
      op_name: where in the traced function it comes from.
      within: how many loops with such a bound are around it.
      in_layers: a loop with a known bound is around it: that over layers, or micro-batches.
    """

    op_name: str
    within: int
    in_layers: int


Expect = Callable[[Loop], float]


def count_runs(
    computations: Mapping[str, Computation], entry: str, expect: Expect = lambda loop: 1.0
) -> dict[str, float]:
    """How often each computation runs.

    Args:
      computations, entry: of `parse_hlo`.
      expect: how often the body of a loop runs whose bound is data.

    Branches of a conditional count as if each ran; what is applied to each element, once.
    """
    runs: dict[str, float] = defaultdict(float)

    def visit(name: str, times: float, within: int, layers: int) -> None:
        runs[name] += times
        computation = computations.get(name, {})
        for step in computation.values():
            inner = [each for each in _called(step) if each in computations]
            if step.kind != "while":
                for each in inner:
                    visit(each, times, within, layers)
                continue
            bound = find_bound(computations, computation, step)
            trips = bound
            if bound is None:
                loop = Loop(op_name=step.op_name, within=within, in_layers=layers)
                trips = expect(loop)
            for each in inner:
                visit(
                    each,
                    times * (trips or 0),
                    within + (bound is None),
                    layers + (bound is not None),
                )

    visit(entry, 1.0, 0, 0)
    return dict(runs)


def _called(step: Instruction) -> list[str]:
    """Names of all computations that an instruction calls, whatever its kind."""
    found = [one or many for one, many in _CALLS.findall(step.rest)]
    return [name.strip().lstrip("%") for names in found for name in names.split(",")]


def find_bound(
    computations: Mapping[str, Computation], around: Computation, loop: Instruction
) -> int | None:
    """How often a loop's body runs, None where that is data.

    The counter goes up by one, from what the loop is given if that is a constant, as where a
    compiler has taken the first round out of the loop; else from 0.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    found = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    condition = computations.get(found[1], {}) if found else {}
    root = next((step for step in condition.values() if step.root), None)
    if root is None or root.kind != "compare" or "direction=LT" not in root.rest:
        return None
    counter, stop = (*map(condition.get, root.operands), None, None)[:2]
    last = _constant(stop)
    if last is None:
        return None
    place = re.search(r"index=(\d+)", counter.rest) if counter else None
    given = around.get(loop.operands[0]) if loop.operands else None
    first = None
    if place and given and given.kind == "tuple":
        step = around.get(given.operands[int(place[1])])
        while step is not None and step.kind == "copy":
            step = around.get(step.operands[0])
        first = _constant(step)
    return max(last - (first or 0), 0)


def _constant(step: Instruction | None) -> int | None:
    number = re.match(r"(-?\d+)\)", step.rest) if step and step.kind == "constant" else None
    return int(number[1]) if number else None
