"""The kernels, operation by operation on CPU, against the reference; lowered for TPUs and GPUs."""

from __future__ import annotations

import importlib.util
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructjax.batching.batch import batch_from_lengths
from instructjax.models import (
    attention,
    attention_flash,
    attention_split,
    flash_gpu,
    flash_tpu,
)
from instructjax.models.attention import Window, attend, attend_dense
from instructjax.models.attention_flash import attend_flash
from instructjax.models.attention_split import AttentionSplit, to_devices, to_rows
from instructjax.models.flash_blocks import Marks, Options
from instructjax.models.flash_tpu import block_size
from instructjax.models.sharded import param_shardings
from instructjax.models.spmd import over_rows
from instructjax.models.tiles import find_tiles
from instructjax.planning.topology import open_devices, parse_topology
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh

interpreted = {
    name: partial(attend_flash, interpret=True, platform=name) for name in ("tpu", "gpu")
}


def lay_out(length, *trees):
    """`positions` and `ends` of prefixes with branches, one after the other."""
    positions, ends, start = np.zeros(length, np.int32), np.zeros(length, np.int32), 0
    for prefix, branches in trees:
        at = start + prefix
        for branch in branches:
            positions[at : at + branch] = np.arange(prefix, prefix + branch)
            ends[at : at + branch] = at + branch
            at += branch
        positions[start : start + prefix] = np.arange(prefix)
        ends[start : start + prefix] = at
        start = at
    assert start <= length
    return positions, ends


def make_rows(length):
    """A tree that ends within a block and sequences; one sequence that fills the row; nothing."""
    a, b, c = length // 2 + 5, length // 6, length // 7
    made = [lay_out(length, (a, [b, c]), (20, [])), lay_out(length, (length, [])), lay_out(length)]
    return tuple(map(np.stack, zip(*made, strict=True)))


def tensors(tokens, heads=4, kv_heads=2, dim=16, values=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = (tokens, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, values)
    return tuple(jnp.asarray(1.5 * rng.standard_normal(shape), dtype) for shape in shapes)


def reference(q, k, v, ends, positions, *, window=None, **options):
    near = None if window is None else Window(window, positions)
    return attend_dense(q, k, v, ends, window=near, **options)


def weighted(form, ends, positions, **options):
    """(a scalar of what tokens in use receive, what they receive)."""
    ends, positions = jnp.asarray(ends), jnp.asarray(positions)

    def total(q, k, v, sinks):
        out = form(q, k, v, ends, positions, sinks=sinks, **options)
        out = jnp.where(ends.reshape(-1, 1, 1) > 0, out.astype(jnp.float32), 0)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))


CASES = {
    "one block": (128, {}),
    "three blocks": (384, {}),
    "larger blocks": (512, {}),
    "window": (384, {"window": 50}),
    "window of one": (384, {"window": 1}),
    "cap and scale": (256, {"softcap": 2.0, "scale": 0.7}),
    "sinks": (256, {"sinks": True}),
    "all": (384, {"window": 200, "softcap": 2.0, "scale": 0.7, "sinks": True}),
}


OFTEN = ("one block", "window", "sinks", "all")


@pytest.mark.parametrize("platform", interpreted)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_values_and_gradients_are_those_of_the_reference(case, platform):
    length, options = CASES[case]
    positions, ends = make_rows(length)
    q, k, v = tensors(ends.size)
    sinks = jnp.array([-1.0, 0.5, 2.0, 4.0]) if options.get("sinks") else None
    window = {"window": jnp.asarray(options["window"])} if "window" in options else {}
    rest = {name: options[name] for name in ("softcap", "scale") if name in options} | window
    (_, expected), slopes = weighted(reference, ends, positions, **rest)(q, k, v, sinks)
    form = interpreted[platform]
    (_, found), ours = weighted(form, ends, positions, **rest)(q, k, v, sinks)
    np.testing.assert_allclose(found, expected, atol=3e-6)
    for a, b in zip(ours, slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


PIECES = [
    ("tpu", 2, {"window": 50}),
    ("gpu", 2, {"window": 200, "softcap": 2.0}),
]
PIECES += [
    pytest.param(*parts, options, marks=pytest.mark.slow)
    for parts in (("tpu", 2), ("gpu", 2), ("gpu", 4))
    for options in ({}, {"window": 50}, {"window": 200, "softcap": 2.0})
    if (*parts, options) not in PIECES
]


@pytest.mark.parametrize(("platform", "parts", "options"), PIECES)
def test_kernels_of_some_queries_of_a_row(options, platform, parts):
    """Each of several devices has an early and a late piece of the queries, and all keys."""
    length, kernel = 512, {"tpu": flash_tpu, "gpu": flash_gpu}[platform]
    positions, ends = (jnp.asarray(x) for x in make_rows(length))
    q, k, v = tensors(ends.size)
    window = {"window": jnp.asarray(options["window"])} if "window" in options else {}
    cap = {name: options[name] for name in ("softcap",) if name in options}

    def total(q, k, v):
        out = reference(q, k, v, ends, positions, **window, **cap)
        out = jnp.where(ends.reshape(-1, 1, 1) > 0, out, 0)
        return (out * slopes).sum(), out

    slopes = jnp.cos(jnp.arange(ends.size * 4 * 8)).reshape(-1, 4, 8)
    slopes = jnp.where(ends.reshape(-1, 1, 1) > 0, slopes, 0)
    (_, expected), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)

    def by_head(x):
        return x.reshape(*ends.shape, *x.shape[1:]).swapaxes(1, 2)

    def split(x, axis=2):
        return jnp.stack(jnp.split(to_devices(x, parts, axis), parts))

    made = Options(4.0**-1, cap.get("softcap"), bool(window), True, platform)
    keys, values = by_head(k), by_head(v)
    starts = split(jnp.arange(length)[None].repeat(3, 0), 1)[:, 0, :: length // (2 * parts)]
    found, d_queries = [], []
    d_keys, d_values = jnp.zeros_like(keys), jnp.zeros_like(values)
    for own, g, depth, start in zip(
        split(by_head(q)), split(by_head(slopes)), split(positions, 1), starts, strict=True
    ):
        width = jnp.full(1, options.get("window", 0), jnp.int32)
        marks = Marks(ends, positions, depth, start, width)
        out, norm = kernel.forward(own, keys, values, marks, options=made)
        delta = (g * out).sum(-1, keepdims=True)
        dq, dk, dv = kernel.backward(own, keys, values, g, norm, delta, marks, options=made)
        found.append(out)
        d_queries.append(dq)
        d_keys, d_values = d_keys + dk, d_values + dv
    whole = (to_rows(jnp.concatenate(x), parts, 2) for x in (found, d_queries))
    ours = [x.swapaxes(1, 2).reshape(ends.size, *x.shape[1::2]) for x in (*whole, d_keys, d_values)]
    np.testing.assert_allclose(ours[0], expected, atol=3e-6)
    for a, b in zip(ours[1:], grads, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.parametrize("platform", interpreted)
def test_the_gradient_of_a_sink_is_that_of_the_reference(platform):
    positions, ends = make_rows(128)
    q, k, v = tensors(ends.size)
    sinks = jnp.array([-1.0, 0.5, 2.0, 4.0])

    def total(form, sinks):
        out = form(q, k, v, jnp.asarray(ends), jnp.asarray(positions), sinks=sinks)
        return jnp.where(ends.reshape(-1, 1, 1) > 0, out, 0).sum()

    expected = jax.grad(partial(total, reference))(sinks)
    assert jnp.abs(expected).min() > 1e-3
    found = jax.grad(partial(total, interpreted[platform]))(sinks)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("dim", "values"), [(24, 8), (80, 96), (256, 192)])
def test_heads_of_any_width(dim, values):
    """A GPU's blocks have a power of two of features: the rest are zeros."""
    positions, ends = make_rows(128)
    arrays = tensors(ends.size, heads=2, kv_heads=1, dim=dim, values=values)
    (_, expected), slopes = weighted(reference, ends, positions)(*arrays, None)
    (_, found), ours = weighted(interpreted["gpu"], ends, positions)(*arrays, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(ours, slopes, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("platform", interpreted)
def test_padding_gives_zeros_and_no_gradient(platform):
    positions, ends = lay_out(256, (100, []))
    q, k, v = tensors(256)
    marks = jnp.asarray(ends[None]), jnp.asarray(positions[None])
    out, pull = jax.vjp(lambda q, k, v: interpreted[platform](q, k, v, *marks), q, k, v)
    assert (out[100:] == 0).all()
    for slope in pull(jnp.ones_like(out)):
        assert jnp.isfinite(slope).all() and (slope[100:] == 0).all()


@pytest.mark.parametrize("platform", interpreted)
def test_bfloat16_is_rounded_once_where_the_reference_is(platform):
    positions, ends = make_rows(256)
    q, k, v = tensors(ends.size, dtype=jnp.bfloat16)
    marks = jnp.asarray(ends), jnp.asarray(positions)
    found = interpreted[platform](q, k, v, *marks)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    exact = reference(q, k, v, *marks)
    used = ends.reshape(-1) > 0
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found[used].astype(jnp.float32), exact[used], atol=0.03)


@pytest.fixture
def as_on(monkeypatch):
    """A function after whose call everything takes the form of a platform."""

    def choose(platform):
        lax = SimpleNamespace(platform_dependent=lambda *x, **forms: forms[platform](*x))
        monkeypatch.setattr(attention, "lax", lax)

    # What interprets kernels inside of a shard_map knows nothing of remat, and so not of gradients
    # of what gathers layer by layer.
    interpret = pltpu.InterpretParams()
    monkeypatch.setattr(attention_split, "as_one", lambda call: call)
    monkeypatch.setattr(attention_flash, "attend_flash", partial(attend_flash, interpret=interpret))
    return choose


AS_ONE = attention_split.as_one


class PlainKernel:
    """What a kernel computes, of whole rows of weights: of queries that `marks.starts` places."""

    @staticmethod
    def _weights(q, k, marks, options):
        starts, keys = marks.starts, jnp.repeat(k, q.shape[1] // k.shape[1], 1)
        piece = jnp.arange(q.shape[2] // len(starts))
        at = (starts[:, None] + piece).reshape(-1, 1)
        seen = (jnp.arange(k.shape[2]) <= at) & (at < marks.ends[:, None, None])
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, keys) * options.scale
        return jnp.where(seen, scores, -1e30), seen

    @classmethod
    def forward(cls, q, k, v, marks, *, options):
        scores, seen = cls._weights(q, k, marks, options)
        norm = jax.nn.logsumexp(scores, -1, keepdims=True)
        weights = jnp.where(seen, jnp.exp(scores - norm), 0)
        values = jnp.repeat(v, q.shape[1] // v.shape[1], 1)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, values), norm

    @classmethod
    def backward(cls, q, k, v, g, norm, delta, marks, *, options):
        group = q.shape[1] // k.shape[1]
        scores, seen = cls._weights(q, k, marks, options)
        weights = jnp.where(seen, jnp.exp(scores - norm), 0)
        values = jnp.einsum("bhqd,bhkd->bhqk", g, jnp.repeat(v, group, 1))
        slopes = weights * (values - delta) * options.scale
        dq = jnp.einsum("bhqk,bhkd->bhqd", slopes, jnp.repeat(k, group, 1))
        both = (jnp.einsum("bhqk,bhqd->bhkd", *x) for x in ((slopes, q), (weights, g)))
        return dq, *(x.reshape(*k.shape[:2], group, *x.shape[2:]).sum(2) for x in both)


MESHES = {"fsdp=2": 2, "tensor=2": 2, "context=2": 2, "context=2,tensor=2": 4}


@pytest.mark.parametrize(
    "mesh",
    [
        "context=2,tensor=2",
        *(pytest.param(m, marks=pytest.mark.slow) for m in MESHES if m != "context=2,tensor=2"),
    ],
)
def test_a_model_gives_the_same_log_probs_and_gradients(random_model, as_on, mesh, monkeypatch):
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_size": 32}
    model = random_model(seed=3, vocab_size=64, **fields)
    rng = np.random.default_rng(1)
    rows, length = (2, 512) if "context" in mesh else (8, 128)  # pieces are blocks, or more
    lengths = rng.integers(30, length + 1, rows)
    tokens = rng.integers(0, 64, (rows, length))
    batch = batch_from_lengths(
        *(jnp.asarray(x, jnp.int32) for x in (tokens, lengths // 2, lengths)), tile=64
    )

    def losses(mesh, params):
        logs = over_rows(token_log_probs, model.graphdef, mesh=mesh)(params, batch)
        return logs.mean(), logs

    as_on("default")
    run = jax.jit(jax.value_and_grad(partial(losses, None), has_aux=True))
    (_, expected), whole = run(model.params)
    as_on("tpu")
    if mesh == "context=2,tensor=2":  # nor of what a shard_map within another must keep
        monkeypatch.setattr(attention_split, "as_one", AS_ONE)
        monkeypatch.setitem(attention_flash._KERNELS, "tpu", PlainKernel)
    devices = make_mesh(mesh, jax.devices()[: MESHES[mesh]])
    if "fsdp" in mesh:
        _, found = jax.jit(partial(losses, devices))(model.params)
    else:
        run = jax.jit(jax.value_and_grad(partial(losses, devices), has_aux=True))
        (_, found), slopes = run(model.params)
        for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    # heads and whole rows of weights are each added up in an order of their own
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5 if "," in mesh else 1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [128, 4096])
def test_lowered_for_tpus_it_is_the_kernel_that_runs(length, dtype):
    q, k, v = tensors(length, heads=4, dim=64, values=64, dtype=dtype)
    positions, ends = jnp.arange(length)[None], jnp.full((1, length), length)

    def call(q, k, v):
        return attend(q, k, v, ends, positions, find_tiles(positions, ends, 64), tile=64)

    def slopes(q, k, v):
        return jax.grad(lambda *x: call(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    def lower(function):
        return jax.jit(function).trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()

    forward = lower(call)
    assert forward.count("tpu_custom_call") == 1 and f"{length}x{length}xf32" not in forward
    assert lower(slopes).count("tpu_custom_call") == 3


LOWERED = {
    "float32": (9, 3, 64, 64, "float32", {}),
    "grouped": (32, 8, 128, 128, "bfloat16", {}),
    "window and cap": (8, 4, 256, 256, "bfloat16", {"window": 512, "softcap": 50.0}),
    "sinks": (64, 8, 64, 64, "bfloat16", {"window": 128, "sinks": True}),
    "latent": (16, 16, 192, 128, "bfloat16", {}),
    "no power of two": (32, 32, 80, 80, "float16", {}),
}


@pytest.mark.parametrize("case", LOWERED)
def test_lowered_for_gpus_it_is_the_kernel_that_runs(case, monkeypatch):
    """Down to Triton's own code, in which every operation has its types; beyond needs a GPU."""
    heads, kv_heads, dim, values, dtype, options = LOWERED[case]
    options, length = dict(options), 2048
    sinks = jnp.zeros(heads) if options.pop("sinks", False) else None
    window = {"window": jnp.int32(options.pop("window"))} if "window" in options else {}
    q, k, v = tensors(length, heads, kv_heads, dim, values, dtype)
    positions, ends = jnp.arange(length)[None], jnp.full((1, length), length)

    def call(q, k, v):
        tiles = find_tiles(positions, ends, 64)
        more = {**window, **options, "sinks": sinks}
        return attend(q, k, v, ends, positions, tiles, tile=64, **more)

    def slopes(q, k, v):
        return jax.grad(lambda *x: call(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    def lower(function):
        return jax.jit(function).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()

    name, scores = "@__gpu$xla.gpu.triton", "2048x2048xf32"
    forward = lower(call)
    assert forward.count(name) == 1 and scores not in forward
    assert lower(slopes).count(name) == 3
    monkeypatch.setenv("INSTRUCTJAX_KERNELS", "off")
    forward = lower(lambda *x: call(*x) + 0)
    assert name not in forward and scores in forward


# Of a device: rows, heads, tokens.
QUERIES = {
    None: (8, 4, 256),
    "fsdp=2": (4, 4, 256),
    "tensor=2": (8, 2, 256),
    "context=2": (8, 4, 128),
    "context=2,tensor=2": (8, 2, 128),
    "fsdp=2,context=2": (4, 4, 128),
}


@pytest.mark.parametrize("mesh", QUERIES)
def test_gradients_of_a_model_are_lowered_for_gpus_on_a_mesh(random_model, mesh):
    """Each device calls the kernel on its own heads and queries: a compiler could not split it."""
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_size": 32}
    model = random_model(seed=3, vocab_size=64, **fields)
    numbers = (jnp.ones((8, 256), jnp.int32), *[jnp.full((8,), n) for n in (60, 256)])
    batch = batch_from_lengths(*numbers, tile=64)
    devices = mesh and make_mesh(mesh, jax.devices()[: 2 ** mesh.count("=")])

    def loss(params):
        logs = over_rows(token_log_probs, model.graphdef, mesh=devices)(params, batch)
        return logs.mean()

    lowered = jax.jit(jax.grad(loss)).trace(model.params).lower(lowering_platforms=("cuda",))
    calls = [x for x in lowered.as_text().splitlines() if "@__gpu$xla.gpu.triton" in x]
    # Queries of each call, with their features (8, and zeros), and keys of whole rows.
    given = {
        tuple(re.findall(r"tensor<([\dx]+)xf32>", call.rpartition(" : (")[2])[:2]) for call in calls
    }
    rows, heads, tokens = QUERIES[mesh]
    assert given == {(f"{rows}x{heads}x{tokens}x16", f"{rows}x{heads // 2}x256x16")}
    assert len(calls) >= 3


def test_heads_too_wide_for_a_gpu_have_another_form():
    q, k, v = tensors(128, dim=320, values=320)
    positions, ends = jnp.arange(128)[None], jnp.full((1, 128), 128)

    def call(q, k, v):
        return attend(q, k, v, ends, positions, find_tiles(positions, ends, 64), tile=64)

    lowered = jax.jit(call).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in lowered and "128x128xf32" in lowered


def test_a_row_that_is_no_number_of_blocks_has_another_form():
    assert block_size(1792) == 256 and block_size(1000) is None
    q, k, v = tensors(1000)
    positions, ends = jnp.arange(1000)[None], jnp.full((1, 1000), 1000)

    def call(q, k, v):
        return attend(q, k, v, ends, positions, find_tiles(positions, ends, 64), tile=64)

    lowered = jax.jit(call).trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in lowered and "1000x1000xf32" in lowered


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "values", "dtype", "options"),
    [
        (9, 3, 64, 64, "float32", {}),
        (32, 8, 128, 128, "bfloat16", {}),
        (8, 4, 256, 256, "bfloat16", {"window": 512, "softcap": 50.0}),
        (64, 8, 64, 64, "bfloat16", {"window": 128, "sinks": True}),
        (16, 16, 192, 128, "bfloat16", {}),
    ],
)
def test_compiled_for_a_tpu(heads, kv_heads, dim, values, dtype, options):
    length = 2048
    mesh = Mesh(np.array(open_devices(parse_topology("v5e:2x2"))), "x")
    whole = NamedSharding(mesh, PartitionSpec())

    def abstract(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    sinks = abstract(heads, dtype="float32") if options.pop("sinks", False) else None
    window = {"window": jnp.int32(options.pop("window"))} if "window" in options else {}
    marks = [abstract(1, length, dtype="int32")] * 2
    shapes = (heads, dim), (kv_heads, dim), (kv_heads, values)
    arrays = [abstract(length, *shape) for shape in shapes]

    def total(q, k, v, ends, positions, sinks):
        split = AttentionSplit(auto=frozenset({"x"}), mesh=mesh)
        out = attend_flash(q, k, v, ends, positions, sinks=sinks, split=split, **window, **options)
        return out.astype(jnp.float32).sum()

    step = jax.jit(jax.grad(total, (0, 1, 2)))
    compiled = step.lower(*arrays, *marks, sinks).compile()
    assert (compiled.as_text() or "").count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("mesh", ["context=4", "context=2,tensor=2", "fsdp=2,context=2"])
def test_a_long_row_over_context_compiled_for_a_tpu(random_model, mesh):
    """Each device calls the kernel on its own queries, and gives and takes keys and values."""
    fields = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 128, "hidden_size": 256}
    model = random_model(seed=3, vocab_size=128, **fields, sinks=True)
    devices = make_mesh(mesh, open_devices(parse_topology("v5e:2x2")))
    rules, rows, length = ShardingRules(), 2, 1024
    data = NamedSharding(devices, rules.spec(("batch",), devices))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=data)

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    params = jax.tree.map(place, model.params, param_shardings(model.config, devices, rules))

    def loss(params, tokens):
        batch = batch_from_lengths(tokens, jnp.full(rows, 60), jnp.full(rows, length), tile=64)
        return over_rows(token_log_probs, model.graphdef, mesh=devices)(params, batch).mean()

    text = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text() or ""
    calls = re.findall(r"(?m)^.*custom_call_target=\"tpu_custom_call\".*$", text)
    assert len(calls) == 3
    shapes = [re.findall(r"f32\[([\d,]+)\]", call.partition("custom-call(")[0]) for call in calls]
    split = devices.shape
    rows //= split.get("fsdp", 1)
    own, heads = length // split["context"], 4 // split.get("tensor", 1)
    queries = f"{rows},{heads},{own},128"
    keys = f"{rows},{heads // 2},{length},128"
    assert sum(queries in shape for shape in shapes) == 2  # forward, and their gradient
    assert sum(shape[:2] == [keys, keys] for shape in shapes) == 1
    assert "all-gather" in text and "reduce-scatter" in text
