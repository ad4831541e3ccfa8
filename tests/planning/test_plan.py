"""Plans compiled for virtual devices: exact memory, the step's collectives, what does not fit."""

import dataclasses
import importlib.util
import json
import math
import os
import re

import jax
import numpy as np
import pytest

from instructjax.cli.main import main
from instructjax.errors import UsageError
from instructjax.models.config import DecoderConfig
from instructjax.models.lora import LoraConfig
from instructjax.models.sharded import device_bytes
from instructjax.planning import plan as planning
from instructjax.planning.compiling import (
    Compiled,
    CompilerError,
    Overflow,
    compile_program,
    read_overflow,
)
from instructjax.planning.hlo import parse_hlo
from instructjax.planning.models import read_decoder_config
from instructjax.planning.plan import make_plan
from instructjax.planning.programs import build_program
from instructjax.planning.search import find_nearest, list_settings, search
from instructjax.planning.setting import Setting, check_setting
from instructjax.planning.topology import compiler_missing, open_devices, parse_topology
from instructjax.sharding.layout import lay_out

CONFIG = DecoderConfig(
    family="llama",
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    max_positions=4096,
    tie_embeddings=True,
)
CPUS = parse_topology("cpu:8")
SETTING = Setting(mesh={"fsdp": 4, "tensor": 2}, batch=8, length=32, dtype="float32")


def plan_of(setting, topology=CPUS, config=CONFIG, **options):
    return make_plan("tiny", config, topology, setting, **options)


@pytest.fixture(scope="module")
def compiled():
    return plan_of(SETTING)


def test_memory_of_arguments_is_what_the_compiler_says(compiled):
    """The sum by shardings is exact; on CPU the layout adds nothing."""
    assert compiled.source == compiled.collectives_source == "compiled"
    assert compiled.memory["padding"] == 0
    # two moments of every parameter, and three counts of steps: Adam's, the schedule's, the run's
    assert compiled.memory["optimizer"] == 2 * compiled.memory["parameters"] + 4 * 3
    assert compiled.memory["batch"] == 2 * (6 * 32 + 1) * 4
    assert compiled.fits is None and compiled.times is None


def test_memory_of_parameters_is_the_sum_over_what_is_split():
    """By hand: every matrix over fsdp and tensor, norms whole."""
    program = build_program(CONFIG, SETTING)
    matrices = CONFIG.num_params - 5 * 32
    assert device_bytes(program.state["parameters"]) == 4 * (matrices / 8 + 5 * 32)
    one = build_program(CONFIG, dataclasses.replace(SETTING, mesh={"fsdp": 1}))
    assert device_bytes(one.state["parameters"]) == 4 * CONFIG.num_params


def test_collectives_of_a_step(compiled):
    """Layers are gathered twice in the loop over them and scattered once; `tensor` only adds up."""
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    sums: dict[tuple, float] = {}
    for each in compiled.collectives:
        key = each.kind, each.axes
        sums[key] = sums.get(key, 0.0) + each.num_bytes * each.count
    table, half = 256 * 32 * 4, 2  # each half of a layer is gathered by itself
    gathered = 2 * 2 * layer * 4 / half + table / half
    assert sums["all-gather", ("fsdp",)] == gathered
    assert sums["reduce-scatter", ("fsdp",)] == 2 * layer * 4 / half + table / half
    assert {axes for kind, axes in sums if kind == "all-gather"} == {("fsdp",)}
    # attention and the MLP, forward and backward, each the hidden states of two rows
    assert sums["all-reduce", ("tensor",)] >= 2 * 4 * 2 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("dtype", "compile"),
    [
        ("float32", False),
        ("bfloat16", False),
        ("bfloat16", True),
        pytest.param("float32", True, marks=pytest.mark.slow),
    ],
)
def test_rows_over_data_add_up_what_fsdp_has_scattered(compile, dtype):
    """Once a step, in float32, of however many micro-batches."""
    setting = dataclasses.replace(
        SETTING, mesh={"data": 2, "fsdp": 4}, dtype=dtype, micro_batches=2, batch=16
    )
    found = plan_of(setting, compile=compile).collectives
    over_data = [e for e in found if e.axes == ("data",)]
    assert sum(e.num_bytes * e.count for e in over_data) == 4 * (CONFIG.num_params - 5 * 32) / 4
    # and norms, that nothing is split of, over both; all of it follows the backward pass
    over_both = [e for e in found if e.axes == ("data", "fsdp") and e.where != "update"]
    assert sum(e.num_bytes * e.count for e in over_both) - 4 * 5 * 32 in (0, 8)
    assert {each.where for each in over_data + over_both} == {"backward"}


MIXTURE = dataclasses.replace(CONFIG, family="mixtral", num_experts=8, experts_per_token=2)


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 2, "expert": 4},
        pytest.param({"data": 2, "expert": 4}, marks=pytest.mark.slow),
        pytest.param({"expert": 4, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("task", ["score", pytest.param("finetune", marks=pytest.mark.slow)])
def test_experts_are_gathered_over_their_axis(task, mesh):
    """What is estimated is what the partitioner does, and what the shapes say: the matrices of all
    experts of a layer, for the forward pass and to compute it again, and once their gradients; over
    `fsdp` each device gathers those of its own experts."""
    setting = dataclasses.replace(SETTING, mesh=mesh, task=task, length=64, remat="layer")
    tune = task == "finetune"
    passes = 2 if tune else setting.programs
    experts, table, norms = 2 * 3 * 8 * 32 * 64, 256 * 32, 5 * 32
    layers = MIXTURE.num_params - experts - table - norms
    for source in (True, False):
        found = plan_of(setting, config=MIXTURE, compile=source).collectives

        def sent(kind, *axes, found=found):
            return sum(e.num_bytes * e.count for e in found if (e.kind, e.axes) == (kind, axes)) / 4

        over_expert = experts / mesh.get("tensor", 1)
        assert sent("all-gather", "expert") == passes * over_expert
        assert sent("reduce-scatter", "expert") == tune * over_expert
        if "fsdp" in mesh:
            within = experts / 4 + layers
            assert sent("all-gather", "fsdp") == passes * within + (1 if tune else passes) * table
            assert sent("reduce-scatter", "fsdp") == tune * (within + table)
            assert sent("all-reduce", "expert") == tune * (layers + table) / 2
        if "data" in mesh:
            assert sent("all-reduce", "data") == tune * experts / 4
        over = {axis for each in found for axis in each.axes}
        assert over == {axis for axis in mesh if tune or axis != "data"}


def test_scoring_sends_each_device_a_row_at_a_time():
    setting = dataclasses.replace(SETTING, task="score", batch=10)
    found = plan_of(setting)
    assert setting.programs == 3
    # in each of three rounds seven matrices of two layers, and the table
    gathers = [each for each in found.collectives if each.axes == ("fsdp",)]
    assert sum(each.count for each in gathers) == 3 * (2 * 7 + 1)
    assert found.flops == plan_of(setting, compile=False).flops
    assert "optimizer" not in found.memory


@pytest.mark.slow
def test_lora_trains_little():
    setting = dataclasses.replace(SETTING, lora=LoraConfig(rank=2), dtype="bfloat16")
    found = plan_of(setting)
    # A and B of seven projections, in x 2 and 2 x out, for two layers: the hidden state's features
    # lie over four devices, those of heads and the MLP over two
    others = [32, 16, 16, 32, 64, 64, 64]
    trained = 2 * 2 * sum(32 // 4 + other // 2 for other in others)
    assert found.memory["optimizer"] == 2 * 4 * trained + 4 * 3
    assert found.memory["padding"] == 0
    assert found.flops < plan_of(dataclasses.replace(SETTING, dtype="bfloat16")).flops


@pytest.mark.slow
def test_micro_batches_do_the_same_work_in_less_memory(compiled):
    setting = dataclasses.replace(SETTING, batch=32, length=256, remat="layer")
    whole, parts = plan_of(setting), plan_of(dataclasses.replace(setting, micro_batches=4))
    assert parts.flops == whole.flops
    assert parts.memory["temporaries"] < whole.memory["temporaries"]
    table = 256 * 32 * 4 / 2  # gathered once: it is the same for all micro-batches
    gathered = [
        sum(e.count for e in each.collectives if e.kind == "all-gather" and e.num_bytes < table)
        for each in (whole, parts)
    ]
    assert gathered[1] == 4 * gathered[0] > 0


def test_json_says_everything(compiled):
    values = json.loads(json.dumps(compiled.to_json()))
    assert values["needed_bytes"] == sum(values["memory_bytes"].values())
    assert values["mesh"] == {"fsdp": 4, "tensor": 2}
    assert values["fits"] is None and values["capacity_bytes"] is None


def test_estimates_are_near_to_what_the_compiler_finds():
    """Within a factor of two of temporaries, where they matter: rows that fill the device."""
    config = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=512, vocab_size=2048)
    for remat in ("layer", "dots"):
        setting = Setting(mesh={"fsdp": 8}, batch=32, length=512, dtype="float32", remat=remat)
        pair = [
            plan_of(setting, config=config, compile=how).memory["temporaries"]
            for how in (True, False)
        ]
        assert 0.5 < pair[1] / pair[0] < 2, (remat, pair)


def test_estimates_know_what_context_splits():
    """Projections and queries are split, tiles of logits are not; keys and values are gathered.

    Pieces of the row are a tile long: shorter ones would not be split.
    """
    one = dataclasses.replace(SETTING, mesh={"data": 1}, batch=1, length=1024, task="score")
    config = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=512)
    split = dataclasses.replace(one, mesh={"context": 8})
    whole, part = (plan_of(each, config=config, compile=False) for each in (one, split))
    matrices = config.num_params - 256 * 128 - 5 * 128
    tiles = 1024 // one.tile
    pairs = one.tile**2 * tiles * (tiles + 1) // 2 * config.num_layers
    attention = 2 * 2 * config.num_heads * config.head_dim * pairs
    assert whole.flops - part.flops == (2 * matrices * 1024 + attention) * 7 / 8
    states, gather = part.collectives
    assert (states.kind, states.num_bytes, states.count) == ("all-gather", 1024 * 128 * 4, 1)
    assert (gather.kind, gather.axes, gather.group, gather.count) == (
        "all-gather",
        ("context",),
        8,
        config.num_layers,
    )
    assert gather.num_bytes == 1024 * (2 + 2) * 8 * 4
    compiled = plan_of(split, config=config)
    found = [e for e in compiled.collectives if e.axes == ("context",) and e.kind == "all-gather"]
    assert 1 <= sum(each.sent for each in found) / (gather.sent + states.sent) < 1.1


@pytest.mark.parametrize(
    ("mesh", "dtype"),
    [
        ({"fsdp": 2, "context": 4}, "float32"),
        pytest.param({"fsdp": 2, "context": 4}, "bfloat16", marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 4}, "float32", marks=pytest.mark.slow),
        pytest.param({"context": 4, "tensor": 2}, "float32", marks=pytest.mark.slow),
    ],
)
def test_what_is_said_over_context_is_estimated_to_the_byte(mesh, dtype):
    """Keys and values go twice and their gradients once; hidden states once; gradients of
    parameters once a step, in float32, after `fsdp` has scattered them."""
    setting = dataclasses.replace(
        SETTING, mesh=mesh, length=1024, batch=4, micro_batches=2, remat="layer", dtype=dtype
    )
    compiled, estimated = (plan_of(setting, compile=how).collectives for how in (True, False))
    tokens, steps = setting.rows * 1024, 2
    keys = steps * 2 * tokens * (2 + 2) * 8 / mesh.get("tensor", 1)
    matrices, norms = CONFIG.num_params - 5 * 32, 5 * 32
    summed = {"fsdp": matrices / 2, "tensor": matrices / 2 + norms}

    def sent(found, kind):
        return sum(e.num_bytes * e.count for e in found if (e.kind, e.axes) == (kind, ("context",)))

    for found, size in (compiled, 4), (estimated, 4 if dtype == "float32" else 2):
        assert sent(found, "all-gather") == (2 * keys + steps * tokens * 32) * size
        assert sent(found, "reduce-scatter") == keys * 4
        alone = next((n for axis, n in summed.items() if axis in mesh), 0)
        extra = 8 if found is compiled and "tensor" in mesh else 0  # the loss and its weight
        assert sent(found, "all-reduce") == 4 * alone + extra


def test_rows_too_short_for_context_are_computed_by_each_of_its_devices():
    """A quarter of what each does is counted as useful; nothing goes over context but the mean of
    gradients, in the compiled program either."""
    one = dataclasses.replace(SETTING, mesh={"data": 2})
    split = dataclasses.replace(SETTING, mesh={"data": 2, "context": 4})
    assert (split.row_parts, split.copies) == (1, 4)
    assert (one.row_parts, one.copies) == (1, 1)
    whole, part = (plan_of(each, compile=False) for each in (one, split))
    assert part.flops == whole.flops and part.useful == whole.useful / 4
    assert part.memory == whole.memory and part.bytes_moved == whole.bytes_moved
    for found in (part, plan_of(split)):
        over = [e for e in found.collectives if "context" in e.axes]
        assert {(e.kind, e.where) for e in over} == {("all-reduce", "backward")}
        assert sum(e.num_bytes * e.count for e in over) - 4 * CONFIG.num_params in (0, 8)
    enough = dataclasses.replace(split, length=505)
    assert (enough.row_parts, enough.copies) == (4, 1)


def test_empty_rows_of_scoring_are_no_useful_work():
    """Ten rows over four devices take three rounds, of twelve rows."""
    setting = dataclasses.replace(SETTING, task="score")
    ten, twelve = (plan_of(dataclasses.replace(setting, batch=n), compile=False) for n in (10, 12))
    assert ten.flops == twelve.flops and math.isclose(ten.useful, twelve.useful * 10 / 12)


def test_more_memory_than_jax_takes_of_a_gpu():
    """It takes three quarters unless it is told otherwise; TPUs are whole."""
    config = read_decoder_config("llama-3.1-8b")

    def plan_on(topology, batch):
        setting = Setting(mesh={"fsdp": 8}, batch=batch, length=4096, remat="dots")
        return make_plan("8b", config, parse_topology(topology), setting, compile=False)

    little, much, most = (plan_on("h100:8", batch) for batch in (8, 32, 48))
    memory = 84942979072
    assert little.needed < 0.75 * memory < much.needed < memory < most.needed
    assert little.fits and much.fits and most.fits is False
    assert little.memory_fraction is most.memory_fraction is None
    assert much.memory_fraction is not None
    assert much.needed <= much.memory_fraction * memory < much.needed + 0.01 * memory
    assert plan_on("v5p:2x2x2", 32).memory_fraction is None


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (28.93G) exceeds available HBM (15.75G).",
            28.93,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 512.50M of 15.75G hbm. Exceeded hbm capacity by 6.26G.",
            0.5005,
            15.75,
        ),
    ],
)
def test_overflows_are_read(message, needed, available):
    found = read_overflow(message)
    assert found is not None
    assert np.allclose([found.needed / 2**30, found.available / 2**30], [needed, available], 1e-3)


def test_other_errors_are_no_overflows():
    assert read_overflow("INVALID_ARGUMENT: no") is None
    assert read_overflow("RESOURCE_EXHAUSTED: too many open files") is None


def test_an_overflow_is_an_answer(monkeypatch):
    monkeypatch.setattr(
        planning,
        "compile_program",
        lambda *_: Overflow(needed=3e9, available=1e9, seconds=1.0),
    )
    found = plan_of(SETTING)
    assert found.fits is False and found.capacity == 1e9
    assert found.needed == 3e9 and found.memory["optimizer"] > 0
    # what it would say was never compiled
    assert (found.source, found.collectives_source) == ("compiled", "estimated")
    assert found.to_json()["collectives_source"] == "estimated"


class Refused:
    def compile(self, **_):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (motion.cc:1) x\nmore")


def test_what_the_compiler_refuses_is_said(monkeypatch):
    """A search goes on to the next, and fails if there is none."""
    real, refusing = planning.compile_program, [True, False, True]

    def compile_or_refuse(program, platform):
        if refusing.pop(0):
            program = dataclasses.replace(program, lower=Refused)
        return real(program, platform)

    monkeypatch.setattr(planning, "compile_program", compile_or_refuse)
    found = search("tiny", CONFIG, CPUS, SETTING, compile=2)
    assert [plan.source for plan in found].count("compiled") == 1
    with pytest.raises(CompilerError, match=r"cpu compiler refuses this step: INTERNAL: .*1\) x;"):
        search("tiny", CONFIG, CPUS, SETTING, compile=1)


def test_where_few_are_estimated_to_fit_the_nearest_others_are_compiled(monkeypatch):
    """8B on 16 chips of v5e, 16 rows: the compiler may find that more fits."""
    config, topology = read_decoder_config("llama-3.1-8b"), parse_topology("v5e:4x4")
    setting = Setting(mesh={"fsdp": 16}, batch=16, length=4096)
    estimated = search("8b", config, topology, setting)
    fitting = [plan for plan in estimated if plan.fits]
    others = [plan for plan in estimated if not plan.fits]
    assert len(fitting) > 0 and others[0].needed < others[1].needed < 1.4 * topology.chip.memory
    asked, real = [], planning.make_plan

    def compile_or_estimate(*args, compile=True):
        plan = real(*args, compile=False)
        if not compile:
            return plan
        asked.append(plan.setting)
        return dataclasses.replace(plan, source="compiled", memory={"temporaries": 1e9})

    monkeypatch.setattr("instructjax.planning.search.make_plan", compile_or_estimate)
    found = search("8b", config, topology, setting, compile=len(fitting) + 2)
    assert asked == [plan.setting for plan in (*fitting, *others[:2])]
    assert [plan.source for plan in found[: len(asked)]] == ["compiled"] * len(asked)
    assert all(plan.fits for plan in found[: len(asked)])


def test_an_estimate_that_the_compiler_proved_too_high():
    """The launch files' setting: 11.8 GiB by libtpu (experiments/results/estimates.md)."""
    config, topology = read_decoder_config("llama-3.1-8b"), parse_topology("v5e:4x4")
    setting = Setting(mesh={"fsdp": 16}, batch=16, length=4096, remat="layer")
    found = make_plan("llama-3.1-8b", config, topology, setting, compile=False)
    assert found.fits and 0.9 * 11.78 < found.needed / 2**30 < 1.25 * 11.78


@pytest.mark.parametrize(
    ("topology", "kinds"),
    [
        ("v5e:2x4", {"all-gather", "reduce-scatter"}),
        ("v5e:4x4", {"all-gather", "all-reduce"}),
        ("v5p:2x2x2", {"all-gather", "all-reduce"}),
        ("v5p:4x4x4", {"all-reduce"}),
        ("tpu7x:2x2x1", {"all-gather", "reduce-scatter"}),
        ("h100:8", {"all-gather", "reduce-scatter"}),
    ],
)
def test_over_whole_slices_tpus_add_up_where_others_scatter(topology, kinds):
    """As libtpu compiles them: experiments/results/plans.md and estimates.json."""
    config, devices = read_decoder_config("llama-3.1-8b"), parse_topology(topology)
    setting = Setting(mesh={"fsdp": devices.num_devices}, batch=devices.num_devices, length=1024)
    found = make_plan("8b", config, devices, setting, compile=False).collectives
    assert {each.kind for each in found if each.num_bytes * each.count > 1e9} == kinds


def test_the_nearest_that_fits():
    """8B on 16 chips of v5e: the mesh can stay, with more micro-batches, or must change."""
    config, topology = read_decoder_config("llama-3.1-8b"), parse_topology("v5e:4x4")
    setting = Setting(mesh={"fsdp": 16}, batch=64, length=4096)
    found = make_plan("llama-3.1-8b", config, topology, setting, compile=False)
    assert found.fits is False
    nearest = find_nearest(found, config)
    assert nearest is not None and nearest.fits
    assert nearest.setting.batch == 64 and nearest.needed < 0.9 * topology.chip.memory
    assert nearest.capacity == nearest.to_json()["capacity_bytes"] == topology.chip.memory
    # 405B needs 4.9 TB for its optimizer alone
    large = read_decoder_config("llama-3.1-405b")
    far = make_plan("llama-3.1-405b", large, topology, setting, compile=False)
    assert find_nearest(far, large) is None


def test_nothing_is_near_where_no_other_mesh_takes_the_rows(tmp_path, capsys):
    """One row of 70B on 16 GPUs: only context and tensor split it, and that is not enough."""
    written = tmp_path / "plan.json"
    words = "plan llama-3.1-70b --topology h100:2x8 --mesh context=16 --batch 1 --compile 0 --json"
    assert main([*words.split(), str(written)]) == 0
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "nothing near fits" in printed
    assert "the chip's rates (estimated)" in printed
    assert json.loads(written.read_text())["fits"] is False


def test_search_ranks_what_fits_by_time():
    config, topology = read_decoder_config("llama-3.2-1b"), parse_topology("v5e:4x4")
    setting = Setting(mesh={}, batch=32, length=2048)
    found = search("llama-3.2-1b", config, topology, setting)
    fitting = [plan for plan in found if plan.fits]
    assert 0 < len(fitting) < len(found)
    assert found[: len(fitting)] == fitting
    times = [plan.times.best for plan in fitting if plan.times]
    assert times == sorted(times) and len(times) == len(fitting)
    needs = [plan.needed for plan in found[len(fitting) :]]
    assert needs == sorted(needs)


def test_search_lists_every_mesh_that_fits():
    """8 devices, 2 key-value heads, 8 rows: tensor of 1 or 2; data and fsdp share the rest, and
    rows of 32 tokens are too short for context."""
    meshes = {tuple(s.mesh.items()) for s in list_settings(CONFIG, CPUS, SETTING)}
    rest = {8: [(1, 8), (2, 4), (4, 2), (8, 1)], 4: [(1, 4), (2, 2), (4, 1)]}
    wanted = set()
    for tensor in (1, 2):
        for data, fsdp in rest[8 // tensor]:
            sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
            wanted.add(tuple((name, size) for name, size in sizes.items() if size > 1))
    assert meshes == wanted


@pytest.mark.parametrize(
    ("length", "contexts"), [(252, {1}), (253, {1, 2}), (505, {1, 2, 4}), (1025, {1, 2})]
)
def test_search_tries_context_where_a_piece_of_a_row_is_a_tile(length, contexts):
    """Tiles of 64 tokens up to rows of 1,024, of 256 then; of 2 n pieces the last may be shorter.
    Two rows, and heads for two devices, leave at least two of eight to context."""
    setting = dataclasses.replace(SETTING, mesh={}, batch=8, length=length)
    meshes = [dict(s.mesh) for s in list_settings(CONFIG, CPUS, setting)]
    assert {mesh.get("context", 1) for mesh in meshes} == contexts
    few = dataclasses.replace(setting, batch=2)
    meshes = [dict(s.mesh) for s in list_settings(CONFIG, CPUS, few)]
    assert {mesh.get("context") for mesh in meshes} == contexts - {1}
    assert all(math.prod(mesh.values()) == 8 for mesh in meshes)


@pytest.mark.parametrize(
    ("length", "batch", "rows", "tokens"),
    # heads take two devices, and context what least_length says: 253, 505, 1009; 2041, 4081
    [(32, 3, "divides by 4, such as 4", None), (300, 3, "divides by 2, such as 4", "505")]
    + [(600, 9, "divides by 1", None), (1100, 1, "divides by 2, such as 2", "2,041")],
)
def test_rows_that_no_mesh_takes_are_refused_with_what_it_would_take(length, batch, rows, tokens):
    setting = dataclasses.replace(SETTING, mesh={}, batch=batch, length=length)
    if rows == "divides by 1":  # tensor=2,context=4
        assert search("tiny", CONFIG, CPUS, setting)
        return
    with pytest.raises(UsageError) as caught:
        search("tiny", CONFIG, CPUS, setting)
    said = str(caught.value)
    assert rows in said and (tokens is None or f"--length of {tokens}," in said)
    number = int(re.findall(r"such as (\d+)", said)[0])
    assert search("tiny", CONFIG, CPUS, dataclasses.replace(setting, batch=number))
    longer = int(re.findall(r"--length of ([\d,]+),", said)[0].replace(",", ""))
    assert search("tiny", CONFIG, CPUS, dataclasses.replace(setting, length=longer))
    with pytest.raises(UsageError):
        search("tiny", CONFIG, CPUS, dataclasses.replace(setting, length=longer - 1))


def test_the_nearest_that_fits_may_split_rows_over_context():
    """One row on 16 chips: heads take eight, so context must take two."""
    config, topology = read_decoder_config("llama-3.1-8b"), parse_topology("v6e:4x4")
    setting = Setting(mesh={"context": 16}, batch=1, length=8192)
    found = make_plan("llama-3.1-8b", config, topology, setting, compile=False)
    assert found.fits is False
    nearest = find_nearest(found, config)
    assert nearest is not None and nearest.fits
    assert nearest.setting.mesh == {"context": 2, "tensor": 8}


@pytest.mark.slow
def test_search_compiles_the_best():
    found = search("tiny", CONFIG, CPUS, SETTING, compile=1)
    assert [plan.source for plan in found].count("compiled") == 1
    assert found[0].source == "compiled"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mesh": {"tensor": 8}}, "tensor of 1, 2"),
        ({"batch": 6}, "a --batch of 4 or 8"),
        ({"length": 5000}, "takes 4,096"),
        ({"micro_batches": 3}, "3 micro-batches"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(change, says):
    with pytest.raises(UsageError) as caught:
        check_setting(CONFIG, dataclasses.replace(SETTING, **change))
    assert says in str(caught.value)


# Large enough for a TPU.
WIDE = dataclasses.replace(CONFIG, hidden_size=512, intermediate_size=1024, head_dim=128)


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2}])
@pytest.mark.parametrize("tied", [True, False])
def test_micro_batches_compile_for_a_tpu(mesh, tied):
    """Head and embedding apart or not: a pass of XLA fails on some; see `xla_flags`."""
    config = dataclasses.replace(WIDE, tie_embeddings=tied)
    setting = Setting(mesh=mesh, batch=16, micro_batches=2, length=256, dtype="bfloat16")
    assert plan_of(setting, parse_topology("v5e:2x2"), config).source == "compiled"


needs_cuda = pytest.mark.skipif(
    compiler_missing(parse_topology("h100:8")) is not None
    or os.environ.get("JAX_PLATFORMS") != "cpu",
    reason="needs the compiler for CUDA, and JAX_PLATFORMS=cpu",
)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_compiled_for_gpus_that_are_not_there(chip):
    """With the kernel of attention: forward, again, and the gradients of queries and of keys."""
    mesh = {"fsdp": 4, "tensor": 2}
    setting = dataclasses.replace(SETTING, mesh=mesh, dtype="bfloat16", length=128, remat="layer")
    found = plan_of(setting, parse_topology(f"{chip}:2x4"), WIDE)
    assert found.source == "compiled" and found.fits and found.times is not None
    assert (found.attention, found.kernel_calls) == ("flash", 2 * 4)
    assert found.memory["padding"] == 0
    assert found.memory["optimizer"] == 2 * found.memory["parameters"] + 4 * 3
    # each half of a layer twice, and the table once
    layer = 2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024
    over = [each for each in found.collectives if each.axes == ("fsdp",)]
    gathered = sum(e.num_bytes * e.count for e in over if e.kind == "all-gather")
    assert gathered == 2 * (2 * 2 * layer + 256 * 512) / 2
    assert jax.default_backend() == "cpu"


@pytest.mark.cuda
@needs_cuda
def test_gpus_multiply_with_every_expert():
    """XLA for CUDA spells grouped products as products with all experts: the plan counts these."""
    config = dataclasses.replace(WIDE, family="mixtral", num_experts=8, experts_per_token=2)
    setting = dataclasses.replace(SETTING, task="score", mesh={"fsdp": 8}, dtype="bfloat16")
    topology = parse_topology("h100:8")
    program = build_program(config, setting, lay_out(setting.mesh, open_devices(topology)))
    compiled = compile_program(program, "gpu")
    assert isinstance(compiled, Compiled)
    done = 0
    for steps in parse_hlo(compiled.text)[0].values():
        for step in steps.values():
            if step.kind == "dot" and "ragged_dot" in step.op_name:
                taken = re.findall(r"lhs_contracting_dims=\{([\d,]+)\}", step.rest)[0].split(",")
                left = dims(steps[step.operands[0]].shape)
                done += 2 * math.prod(dims(step.shape)) * math.prod(left[int(at)] for at in taken)
    # of one layer, as the loop's body is there once: two experts a token of a row
    assert done == 8 * 2 * (2 * setting.length) * 3 * 512 * 1024
    counted = [
        make_plan("tiny", config, parse_topology(name), setting, compile=False).flops
        for name in ("h100:8", "v5e:2x4")
    ]
    assert counted[0] - counted[1] == 2 * done * (8 - 1) / 8


def dims(shape):
    return [int(n) for n in re.findall(r"\[([\d,]*)\]", shape)[0].split(",")]


def test_without_a_compiler_gpus_are_estimated(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", "llama-3.2-1b", "--topology", "h100:8", "--length", "1024"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "estimated, not compiled" in printed
    assert "pip install 'instructjax[cuda-compiler]'" in printed


class NoAssembler:
    def compile(self, **_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: No PTX compilation provider is available.")


def test_a_compiler_without_its_assembler_says_what_to_install():
    program = dataclasses.replace(build_program(CONFIG, SETTING), lower=NoAssembler)
    with pytest.raises(CompilerError, match=r"finds no ptxas; pip install .*cuda-compiler"):
        compile_program(program, "gpu")


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_compiled_for_a_tpu_that_is_not_there():
    setting = dataclasses.replace(SETTING, mesh={"fsdp": 2, "tensor": 2}, dtype="bfloat16")
    found = plan_of(setting, parse_topology("v5e:2x2"), WIDE)
    assert found.source == "compiled" and found.fits
    assert found.times is not None
    assert {each.axes for each in found.collectives} >= {("fsdp",), ("tensor",)}
    assert jax.default_backend() == "cpu"
    large = dataclasses.replace(setting, batch=1 << 12, length=4096)
    assert plan_of(large, parse_topology("v5e:2x2"), WIDE).fits is False
