"""Devices by name, meshes over them, and the least time that talk takes there."""

import math
import re
from typing import Any

import pytest

from instructjax.errors import UsageError
from instructjax.planning.chips import CHIPS
from instructjax.planning.collectives import Collective
from instructjax.planning.gpu_targets import describe_gpu
from instructjax.planning.roofline import estimate_times, talk_seconds
from instructjax.planning.topology import open_devices, parse_topology
from instructjax.sharding.layout import crossing_axis, lay_out


@pytest.mark.parametrize(
    ("text", "slices", "count"),
    [
        ("v5e:16x16", 1, 256),
        ("v5p:2x4x4", 1, 32),
        ("v4:2x2x2", 1, 8),
        ("tpu7x:2x2x1", 1, 8),
        ("V6E:4x4", 2, 32),
        ("h100:8", 1, 8),
        ("b200:2x8", 1, 16),
        ("cpu:6", 1, 6),
        ("v5litepod:4x4", 1, 16),
    ],
)
def test_number_of_devices(text, slices, count):
    assert parse_topology(text, slices).num_devices == count


@pytest.mark.parametrize(
    ("text", "slices", "says"),
    [
        ("v5x:4x4", 1, "v5p"),
        ("tpu", 1, "tpu7x"),
        ("v5e:4", 1, "2 numbers"),
        ("v5p:4x4", 1, "3 numbers"),
        ("v5e:4y4", 1, "no shape"),
        ("v5e:0x4", 1, "no shape"),
        ("v5e:3x5", 1, "no slice of TPU v5e; there are 1x1, 2x2, 2x4, 4x4"),
        ("v6e:16x32", 1, "no slice of TPU v6e"),
        ("v4:2x2x8", 1, "4x4x4 and multiples of 4, 4,096 chips at most"),
        ("v5p:16x16x28", 1, "6,144 chips at most"),
        ("h100:8", 2, "only TPUs"),
        ("h100", 1, "'h100' has no shape; write it as h100:8 or h100:2x8"),
        ("h100:64", 1, "h100:8x8"),
        ("b200:1x9", 1, "b200:2x8"),
        ("a100:2x16", 1, "a100:4x8"),
        ("v5e:4x4", 10**11, "more than 1,048,576 devices"),
    ],
)
def test_what_there_is_not(text, slices, says):
    with pytest.raises(UsageError) as caught:
        parse_topology(text, slices)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["v5p:16x16x24", "v4:4x12x8", "tpu7x:2x4x2", "v5e:4x2"])
def test_slices_of_any_order_and_large_ones(text):
    assert parse_topology(text).name == text


def test_virtual_devices_in_a_mesh():
    topology = parse_topology("cpu:8")
    mesh = lay_out({"fsdp": 4, "tensor": 2}, open_devices(topology))
    assert dict(mesh.shape) == {"fsdp": 4, "tensor": 2}
    with pytest.raises(UsageError, match="begun with 8"):
        open_devices(parse_topology("cpu:9"))


def test_slices_lie_along_the_first_axis_that_takes_them():
    assert crossing_axis({"data": 2, "fsdp": 8}, 2) == 0
    assert crossing_axis({"data": 3, "fsdp": 8}, 2) == 1
    with pytest.raises(UsageError, match="data=2"):
        crossing_axis({"fsdp": 3}, 2)


def test_rings_on_the_torus():
    """50 GB/s a link of v5e: a closed ring of 16 sends both ways, an open one of 4 one way."""
    whole, part = parse_topology("v5e:16x16"), parse_topology("v5e:4x4")
    mesh = {"fsdp": 16, "tensor": 16}
    assert math.isclose(talk_seconds(whole, mesh, ("tensor",), 16, 100e9), 1.0)
    assert math.isclose(talk_seconds(whole, mesh, ("fsdp", "tensor"), 256, 100e9), 0.5)
    assert math.isclose(talk_seconds(part, {"fsdp": 4, "tensor": 4}, ("fsdp",), 4, 100e9), 2.0)
    cube = parse_topology("v5p:4x4x4")
    assert math.isclose(talk_seconds(cube, {"fsdp": 64}, ("fsdp",), 64, 600e9), 1.0)


def test_between_slices_the_devices_of_each_share_the_network():
    topology = parse_topology("v5e:16x16", 2)
    mesh = {"data": 2, "fsdp": 256}
    alone = talk_seconds(topology, mesh, ("data",), 2, 3.125e9)
    assert math.isclose(alone, 1.0)
    both = talk_seconds(topology, mesh, ("data", "fsdp"), 512, 3.125e9)
    assert math.isclose(both, 1 / 256 + 3.125e9 / 200e9)

    wide = {"data": 4, "fsdp": 128}
    assert math.isclose(talk_seconds(topology, wide, ("data",), 2, 3.125e9, network=True), 1.0)
    # two of the four along the axis are in the same slice
    assert talk_seconds(topology, wide, ("data",), 2, 3.125e9) < 0.1


def test_gpus_lie_node_by_node():
    """Four nodes of eight: `tensor` stays within, half of `data` and all of `fsdp` are without."""
    topology, mesh = parse_topology("h100:4x8"), {"data": 2, "fsdp": 4, "tensor": 4}
    # 50 GB/s to other nodes, 450 GB/s within
    assert math.isclose(talk_seconds(topology, mesh, ("tensor",), 4, 450e9), 1.0)
    assert math.isclose(talk_seconds(topology, mesh, ("data",), 2, 50e9), 1.0)
    # two of the four are in the same node, and share the network's work
    assert math.isclose(talk_seconds(topology, mesh, ("fsdp",), 4, 100e9), 1.0 + 100 / 450)


@pytest.mark.parametrize("chip", [chip for chip in CHIPS.values() if chip.platform == "gpu"])
def test_what_the_compiler_is_told_of_gpus_is_what_data_sheets_say(chip):
    """Its memory and bandwidth are measured ones, a few percent from those that are sold; plans
    have the same memory, of which JAX takes three quarters."""
    told = dict(re.findall(r"(\w+): (\d+)$", describe_gpu(chip.name), re.MULTILINE))
    assert int(told["device_memory_size"]) == chip.memory
    sold = {"a100": 80e9, "h100": 80e9, "b200": 180e9}[chip.name]
    assert math.isclose(chip.memory, sold, rel_tol=0.07) and chip.taken == 0.75
    assert math.isclose(int(told["memory_bandwidth"]), chip.bandwidth, rel_tol=0.05)
    # tensor cores: so many bfloat16 operations a clock and multiprocessor, at boost clock
    operations = {"a100": 2048, "h100": 4096, "b200": 8192}[chip.name]
    clock = float(re.findall(r"clock_rate_ghz: ([\d.]+)", describe_gpu(chip.name))[0]) * 1e9
    peak = int(told["core_count"]) * operations * clock
    assert math.isclose(peak, chip.flops, rel_tol=0.1)
    # other cores: a product and a sum a clock each
    single = int(told["core_count"]) * int(told["fpus_per_core"]) * 2 * clock
    assert math.isclose(single, chip.rate("float32"), rel_tol=0.1)


@pytest.mark.parametrize(("topology", "times"), [("v5p:2x4x4", 6), ("a100:8", 16)])
def test_products_of_float32_take_longer(topology, times):
    """As many times as the chip's rates say: of TPUs by the passes of a product that is not
    rounded, of an A100 by its data sheet, 312 and 19.5 TFLOP/s."""
    work: Any = {"flops": 1e15, "bytes_moved": 1e9, "collectives": []}
    plain, exact = (
        estimate_times(parse_topology(topology), {"fsdp": 32}, dtype=dtype, **work)
        for dtype in ("bfloat16", "float32")
    )
    assert plain is not None and exact is not None
    assert math.isclose(exact.compute / plain.compute, times)
    assert exact.memory == plain.memory


def test_what_bounds_a_step():
    found = estimate_times(
        parse_topology("h100:8"),
        {"fsdp": 8},
        dtype="bfloat16",
        flops=989e12,
        bytes_moved=3350e9 / 2,
        collectives=[
            Collective(kind="all-gather", axes=("fsdp",), group=8, num_bytes=450e9, count=2.0)
        ],
    )
    assert found is not None
    assert found.parts == {"compute": 1.0, "memory": 0.5, "talk over fsdp": 1.75}
    assert (found.best, found.worst, found.bound) == (1.75, 3.25, "talk over fsdp")
