"""Memory, traffic and talk of a step from its shapes alone: for choosing, and without a compiler.

Parameters, optimizer state and batch are exact. The rest is what must be held or moved by the way
that the step computes; a compiler finds more, and sometimes less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.finetuning.partition import name_param
from instructjax.models.attention import WHOLE, kernel_block
from instructjax.models.config import DecoderConfig
from instructjax.models.sharded import device_bytes, is_stacked, param_spec
from instructjax.planning.collectives import Collective
from instructjax.planning.flops import (
    Flops,
    Form,
    count_forward,
    count_step,
    head_rows,
    kernel_sizes,
    learns_table,
)
from instructjax.planning.programs import Program
from instructjax.planning.setting import Setting
from instructjax.planning.topology import Topology


def attention_form(config: DecoderConfig, setting: Setting, platform: str) -> tuple[Form, int]:
    """The form that `instructjax.models.attention.attend` takes there, and tokens of its tiles."""
    width = max(config.head_dim, config.value_dim)
    parts = setting.row_parts
    piece = setting.length if parts == 1 else -(-setting.length // (2 * parts))
    block = kernel_block(platform, piece, width, jnp.dtype(setting.dtype).itemsize)
    if block:
        return "flash", block
    tiles = platform == "cpu" or setting.length > WHOLE or parts > 1
    return "tiles" if tiles else "whole", setting.tile


def device_flops(
    config: DecoderConfig,
    program: Program,
    setting: Setting,
    form: Form,
    tile: int,
    platform: str,
    *,
    useful: bool = False,
) -> Flops:
    """Operations of one device in a step.

    `useful` leaves out what is computed twice, masked or of empty rows, and counts what several
    devices compute alike as if each did a part of it.
    """
    rows = setting.rows * setting.programs * setting.micro_batches
    params = program.state["parameters"]
    options: dict[str, Any] = {
        "rows": rows,
        "length": setting.length,
        "form": "visible" if useful else form,
        "tile": tile,
        "every_expert": platform == "gpu" and not useful,
    }
    if setting.task == "score":
        found = count_forward(config, params, **options)
    else:
        found = count_step(
            config,
            params,
            trained=params[0],
            remat=setting.remat,
            again=not useful,
            **options,
        )
    # tiles of logits are whole on every device that has a part of a row
    split = Flops(
        layers=found.layers / setting.parts("mlp") / setting.row_parts,
        attention=found.attention / setting.parts("heads") / setting.row_parts,
        head=found.head / setting.parts("vocab"),
    )
    if not useful:
        return split
    # scoring fills up with empty rows what does not divide
    full = setting.batch / (rows * setting.parts("batch"))
    return Flops(
        layers=split.layers * full / setting.copies,
        attention=split.attention * full / setting.copies,
        head=split.head * full / setting.parts("sequence"),
    )


def estimate_memory(
    config: DecoderConfig, program: Program, setting: Setting, form: Form, platform: str
) -> dict[str, float]:
    """Bytes a device by kind; "temporaries" and "outputs" are estimates, the others exact."""
    found = {name: float(device_bytes(tree)) for name, tree in program.state.items()}
    found["batch"] = float(device_bytes(program.batch))
    found["temporaries"] = _temporaries(config, program, setting, form)
    if config.num_experts and platform == "gpu":  # of each expert's, all rows, zeros where others'
        tokens = setting.rows * setting.length * config.num_experts * config.experts_per_token
        features = config.hidden_size + config.intermediate_size / setting.parts("mlp")
        found["temporaries"] += tokens * features * jnp.dtype(setting.dtype).itemsize
    tokens = setting.rows * setting.length
    found["outputs"] = 20.0 * tokens if setting.task == "score" else 32.0
    return found


def _temporaries(config: DecoderConfig, program: Program, setting: Setting, form: Form) -> float:
    """What is held besides at the moment that takes most: when the tables' gradients are made, or
    within a layer. A compiler orders things its own way; see experiments/results/estimates.md."""
    size = jnp.dtype(setting.dtype).itemsize
    tensor = setting.parts("mlp")
    tokens = setting.rows * setting.length
    part = tokens / setting.row_parts
    e = config.hidden_size
    split = setting.parts("embed") > 1 or setting.parts("experts") > 1
    table = config.vocab_size * e / setting.parts("vocab")
    layers = 2 * split * _layer_elements(program) / tensor * size  # one is gathered ahead
    wide = _wide(config) / tensor
    scores = setting.rows * config.num_heads / setting.parts("heads") * setting.length**2
    attend = (
        scores * (4 + size)
        if form == "whole"
        else 12.0 * part * config.num_heads * (config.head_dim / setting.parts("heads"))
    )
    if part < tokens:  # keys and values of whole rows
        attend += tokens * _keys_width(config) / setting.parts("heads") * size
    if setting.task == "score":
        within = layers + part * (4 * e + 2 * wide) * size + attend
        return max((table * split + tokens * e) * size, within)
    params = program.state["parameters"]
    trained = device_bytes(params[0])
    learns_tables = learns_table(config, params[0])
    total = trained * (1 if setting.micro_batches == 1 else 3)  # gradients, their sums
    total += trained / 4 * size  # as they are computed with
    dots = 2 * e + wide + _heads_width(config) / tensor
    kept = {"layer": e, "dots": dots, "none": dots + 18 * e + 2 * wide}
    total += config.num_layers * part * kept[setting.remat] * size
    if setting.remat == "none" and form == "whole":
        total += config.num_layers * scores * (4 + size)
    total += part * (4 * e + 3 * wide) * size
    head = table * (size * split + 4 * learns_tables) + tokens * e * 4 * (part < tokens)
    rows = head_rows(setting.task)
    head += 2 * 4 * min(rows, tokens) * config.vocab_size / setting.parts("vocab")
    return total + max(head, layers * (1 + learns_tables) + 2 * attend)


def _layer_elements(program: Program) -> float:
    """Elements of the kernels of one layer, whole."""
    sizes: dict[str, tuple[int, int]] = {}
    for keys, leaf in jax.tree.leaves_with_path(program.state["parameters"]):
        path = name_param(keys)
        if is_stacked(path):
            sizes[path] = (leaf.size // leaf.shape[0], leaf.shape[0])
    deepest = max((depth for _, depth in sizes.values()), default=1)
    return float(sum(size for size, depth in sizes.values() if depth == deepest))


def _wide(config: DecoderConfig) -> float:
    """Features within an MLP or a token's experts: gate and up."""
    each = float(config.intermediate_size * max(config.experts_per_token, 1))
    return each * (2 if config.gated else 1)


def _keys_width(config: DecoderConfig) -> float:
    return float(config.num_kv_heads * (config.head_dim + config.value_dim))


def _heads_width(config: DecoderConfig) -> float:
    return 2.0 * (config.num_heads + config.num_kv_heads) * config.head_dim


def estimate_traffic(
    config: DecoderConfig, program: Program, setting: Setting, form: Form
) -> float:
    """Bytes that a device moves to and from its memory in a step, at least."""
    size = jnp.dtype(setting.dtype).itemsize
    tensor, steps = setting.parts("mlp"), setting.programs * setting.micro_batches
    tokens = setting.rows * setting.length
    passes = 1 if setting.task == "score" else 4 if setting.remat == "layer" else 3
    kernels = sum(kernel_sizes(program.state["parameters"]).values()) / tensor * size
    split = 2 if setting.parts("batch") > 1 else 1  # written when gathered, and read
    total = kernels * passes * split
    wide = _wide(config) / tensor
    narrow = 8 * config.hidden_size + 2 * _heads_width(config) / tensor
    part = tokens / setting.row_parts
    total += config.num_layers * part * (narrow + 3 * wide) * size * passes
    scores = setting.rows * config.num_heads / setting.parts("heads") * setting.length**2
    if form == "whole":
        total += config.num_layers * scores * 2 * (4 + 4 + size) * passes
    rows = head_rows(setting.task)
    chunks = -(-tokens // rows)
    table = config.vocab_size * config.hidden_size / setting.parts("vocab")
    total += chunks * table * size
    if setting.task == "finetune":
        learns = learns_table(config, program.state["parameters"][0])
        total += chunks * table * (size + 8 * learns)  # again, and its gradient read and written
        total *= steps
        state = device_bytes(program.state["optimizer"])
        trained = device_bytes(program.state["parameters"][0])
        return total + 2 * state + 4 * trained
    return total * steps


def estimate_collectives(
    config: DecoderConfig, program: Program, setting: Setting, topology: Topology
) -> list[Collective]:
    """What has to be said: parameters gathered, gradients scattered and added up once a step,
    partial sums of `tensor`, and over `context` keys, values and the last hidden states gathered,
    and gradients of keys and values scattered.

    A matrix that is split over several axes of rows is gathered over the last of them last, and its
    gradient scattered over it first.
    """
    size = jnp.dtype(setting.dtype).itemsize
    mesh, rules = setting.abstract_mesh, setting.rules
    rows: tuple[str, ...] = rules.mesh_axes("batch", mesh)
    rows = tuple(axis for axis in rows if mesh.shape[axis] > 1)
    context = tuple(a for a in rules.mesh_axes("sequence", mesh) if mesh.shape[a] > 1)
    found: list[Collective] = []
    train, steps = setting.task == "finetune", setting.programs * setting.micro_batches
    params = program.state["parameters"]
    learn = (
        {name_param(keys) for keys, _ in jax.tree.leaves_with_path(params[0])} if train else set()
    )
    gathered: dict[tuple[str, ...], float] = {}
    scattered: dict[tuple[str, ...], float] = {}
    added: dict[tuple[str, ...], float] = {}
    passes = 2 if train else 1
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = name_param(keys)
        spec = param_spec(path, leaf.shape, mesh, rules)
        parts = [part if isinstance(part, tuple) else (part,) for part in spec if part]
        split = [tuple(axis for axis in rows if axis in part) for part in parts]
        split = sorted(filter(None, split), key=lambda axes: rows.index(axes[0]))
        names = [name for part in parts for name in part]
        within = is_stacked(path)
        whole = leaf.size * size / math.prod(mesh.shape[n] for n in names if n not in rows)
        share = whole
        for over in reversed(split):
            gathered[over] = gathered.get(over, 0.0) + share * (passes if within else 1)
            if path in learn:
                scattered[over] = scattered.get(over, 0.0) + share
            share /= math.prod(mesh.shape[axis] for axis in over)
        if path in learn:
            rest = tuple(axis for axis in rows + context if axis not in names)
            if rest:
                # In float32, once all micro-batches are done.
                added[rest] = added.get(rest, 0.0) + 4 * share / size
    spelled = _spell(topology)
    for kind, parts, count, where in (
        ("all-gather", gathered, steps, "forward"),
        ("reduce-scatter", scattered, steps, "backward"),
        ("all-reduce", added, setting.programs, "backward"),
    ):
        for axes, num_bytes in parts.items():
            one = _collective(kind, axes, mesh.shape, float(num_bytes), count, where)
            wide = one.group == math.prod(topology.shape) * topology.chip.parts
            found.append(dataclasses.replace(one, kind=spelled.get(kind, kind)) if wide else one)
    tensor = tuple(a for a in rules.mesh_axes("mlp", mesh) if mesh.shape[a] > 1)
    if tensor:
        hidden = setting.rows * setting.length * config.hidden_size * size / setting.row_parts
        # after attention and the MLP, and of the gradients before them; computed again, the first
        times = {"score": 2, "none": 4, "dots": 4, "layer": 5}
        count = times["score" if not train else setting.remat] * config.num_layers
        found.append(_collective("all-reduce", tensor, mesh.shape, hidden, count * steps, "layers"))
    if setting.row_parts > 1:
        tokens = setting.rows * setting.length
        keys = tokens * _keys_width(config) / setting.parts("heads")
        states = tokens * config.hidden_size * size
        for kind, num_bytes, count, where in (
            ("all-gather", keys * size, config.num_layers * (1 + train), "layers"),
            ("reduce-scatter", keys * 4, config.num_layers * train, "layers"),
            ("all-gather", float(states), 1, "forward"),
        ):
            if count:
                count *= steps
                found.append(_collective(kind, context, mesh.shape, num_bytes, count, where))
    return sorted(found, key=lambda each: -each.sent)


def _spell(topology: Topology) -> dict[str, str]:
    """What libtpu (0.0.42) makes of what all chips of a slice say to each other, to use the links
    of all dimensions of a torus at once: it adds up whole, and takes a part."""
    dims, shape = topology.chip.dims, topology.shape
    if topology.chip.platform != "tpu" or topology.chip.parts > 1 or min(shape) == 1:
        return {}
    spelled = {}
    if dims == 3 or (min(shape) == max(shape) > 2):
        spelled["reduce-scatter"] = "all-reduce"
    if dims == 3 and min(shape) > 2:
        spelled["all-gather"] = "all-reduce"
    return spelled


def _collective(
    kind: str,
    axes: tuple[str, ...],
    mesh: Mapping[str, int],
    num_bytes: float,
    count: int,
    where: str,
) -> Collective:
    group = math.prod(mesh[axis] for axis in axes)
    return Collective(
        kind=kind,
        axes=axes,
        group=group,
        num_bytes=float(num_bytes),
        count=float(count),
        where=where,
    )
