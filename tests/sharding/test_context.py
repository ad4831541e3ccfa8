"""Long rows over the axis `context`: the same log-probs and gradients, and less on each device."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from instructjax.batching.batch import Batch
from instructjax.batching.packing import pack
from instructjax.finetuning.batch import WeightedIds, make_sft_batch
from instructjax.finetuning.partition import split_params
from instructjax.finetuning.step import make_loss_and_grads
from instructjax.models import attention_tiles
from instructjax.models.attention_split import to_devices
from instructjax.models.config import LatentAttention, LayerKind, RopeConfig
from instructjax.models.remat import REMAT
from instructjax.models.sharded import param_shardings
from instructjax.models.spmd import over_rows
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh

LENGTH = 1000
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(seed=5)


def split_over(model, shape):
    count = int(np.prod([int(part.split("=")[1]) for part in shape.split(",")]))
    mesh, rules = make_mesh(shape, jax.devices()[:count]), ShardingRules()
    return mesh, jax.device_put(model.params, param_shardings(model.config, mesh, rules))


@pytest.mark.parametrize("shape", ["context=8", "data=2,context=4", "fsdp=2,context=2,tensor=2"])
def test_law_3_a_long_sequence_over_context(shape, model):
    """One sequence that fills a row, and a tree of others that share its start."""
    ids = np.random.default_rng(0).integers(0, 61, LENGTH).astype(np.int32)
    other = np.concatenate([ids[:400], ids[:100][::-1]])
    requests = [
        Request(ids=ids, spans=((1, LENGTH),), num_bytes=1),
        Request(ids=other, spans=((300, 500),), num_bytes=1),
    ]
    (row,) = pack(requests)
    assert row.batch.tokens.shape[1] % 8 == 0 and row.batch.tokens.shape[1] >= LENGTH
    mesh, params = split_over(model, shape)
    rows = ShardingRules().parts("batch", mesh)
    batch = jax.tree.map(lambda x: jax.numpy.repeat(x, rows, 0), row.batch)
    whole = jax.jit(token_log_probs)(model.graphdef, model.params, row.batch)

    def run(mesh, params):
        """What is found, and the operations of a device."""
        compute = over_rows(token_log_probs, model.graphdef, mesh=mesh)
        compiled = jax.jit(lambda params: compute(params, batch)).lower(params).compile()
        costs: Any = compiled.cost_analysis()
        return np.asarray(compiled(params)), costs["flops"]

    found, flops = run(mesh, params)
    for line in found:
        assert np.abs(line - np.asarray(whole)[0]).max() < 1e-5
    if "tensor" in shape:
        return
    # Less is computed on each device than where every one has the whole row.
    alone = {name: size for name, size in mesh.shape.items() if name != "context"} or {"data": 1}
    few = make_mesh(alone, jax.devices()[: 8 // mesh.shape["context"]])
    placed = jax.device_put(model.params, param_shardings(model.config, few, ShardingRules()))
    assert flops < 0.75 * run(few, placed)[1]


def lay_trees(length, *trees):
    """`positions` and `ends` of prefixes with branches, one after the other."""
    positions, ends, start = np.zeros(length, np.int32), np.zeros(length, np.int32), 0
    for prefix, branches in trees:
        stop = start + prefix
        for branch in branches:
            positions[stop : stop + branch] = prefix + np.arange(branch)
            ends[stop : stop + branch] = stop + branch
            stop += branch
        positions[start : start + prefix] = np.arange(prefix)
        ends[start : start + prefix] = stop
        start = stop
    assert start <= length
    return positions, ends


def make_batch(rng, length, tile):
    """Rows of a tree and sequences, of one sequence, of many and of hardly any; all is scored."""
    trees = [
        [(length // 3, [length // 7, 3, 5, length // 5]), (length // 6, [])],
        [(length, [])],
        [(n, []) for n in (3, length // 4 + 1, 1, length // 3, length // 9)],
        [(5, [])],
    ]
    made = [lay_trees(length, *row) for row in trees]
    positions, ends = (jnp.asarray(np.stack(x), jnp.int32) for x in zip(*made, strict=True))
    sources = jnp.broadcast_to(jnp.arange(length), positions.shape)
    tokens, targets = jnp.asarray(rng.integers(0, 61, (2, *positions.shape)), jnp.int32)
    return Batch(
        tokens=tokens,
        positions=positions,
        ends=ends,
        sources=sources,
        targets=targets,
        num_scored=jnp.full(len(trees), length),
        tile=tile,
    )


FULL, NEAR = LayerKind(rope=RopeConfig()), LayerKind(rope=RopeConfig(), window=21)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows and caps": {
        "layers": (NEAR, FULL),
        "attention_softcap": 3.0,
        "attention_scale": 0.4,
        "logit_softcap": 9.0,
    },
    "sinks and experts": {
        "layers": (NEAR, FULL),
        "sinks": True,
        "num_experts": 4,
        "experts_per_token": 2,
        "normalize_experts": True,
    },
    "latent": {
        "num_kv_heads": 4,
        "head_dim": 6,
        "latent": LatentAttention(rank=8, rotary_dim=2, value_dim=4),
        "rope": RopeConfig(
            kind="longrope",
            original_max_positions=40,
            divisors=(1.5,),
            long_divisors=(3.0,),
        ),
    },
}
MESHES = {
    "context=2": "plain",
    "context=4": "windows and caps",
    "context=8": "sinks and experts",
    "context=2,tensor=2": "windows and caps",
    "data=2,context=4": "sinks and experts",
    "expert=2,context=2": "sinks and experts",
    "data=2,context=2": "latent",
    "fsdp=2,context=2,tensor=2": "sinks and experts",
    "fsdp=2": "sinks and experts",
}


OFTEN = "fsdp=2,context=2,tensor=2"
RUNS = [
    pytest.param(shape, remat, marks=() if (remat, shape) == ("none", OFTEN) else SLOW)
    for shape in MESHES
    for remat in REMAT
]


@pytest.mark.parametrize(("shape", "remat"), RUNS)
def test_laws_3_and_7_what_every_token_of_a_row_gives(shape, remat, random_model):
    """Log-probs and gradients of trees, packed rows and padding, in rows that do not divide."""
    model = random_model(seed=6, **MODELS[MESHES[shape]])
    length = 130
    batch = make_batch(np.random.default_rng(2), length, 8)
    weights = np.cos(np.arange(4 * length)).reshape(4, length) * (np.asarray(batch.ends) > 0)

    def run(mesh, params):
        compute = over_rows(partial(token_log_probs, remat=remat), model.graphdef, mesh=mesh)

        def total(params):
            logs = compute(params, batch)
            return (logs * weights).sum(), logs

        (_, logs), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        return np.where(weights == 0, 0, logs), slopes

    expected, whole = run(None, model.params)
    found, slopes = run(*split_over(model, shape))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(slopes), jax.tree.leaves(whole), strict=True
    ):
        scale = np.abs(np.asarray(theirs)).max()
        error = np.abs(np.asarray(ours) - np.asarray(theirs)).max()
        assert scale > 0 and error <= 2e-5 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("parts", "length", "tile"),
    [(4, 64, 64), (4, 64, 16), (2, 64, 16), (2, 40, 8), pytest.param(8, 200, 16, marks=SLOW)],
)
def test_pieces_shorter_than_a_tile_as_long_and_longer(parts, length, tile, model):
    batch = make_batch(np.random.default_rng(4), length, tile)
    mesh, params = split_over(model, f"context={parts}")
    found = jax.jit(over_rows(token_log_probs, model.graphdef, mesh=mesh))(params, batch)
    expected = jax.jit(token_log_probs)(model.graphdef, model.params, batch)
    real = np.asarray(batch.ends) > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [2, 4])
def test_each_device_visits_its_share_of_tiles(parts, model, monkeypatch):
    """A sequence of t tiles has t (t + 1) / 2 pairs of tiles that see each other, a layer."""
    visits: Counter[int] = Counter()
    capped = attention_tiles.capped

    def counted(scores, softcap):
        jax.debug.callback(lambda device: visits.update([int(device)]), lax.axis_index("context"))
        return capped(scores, softcap)

    monkeypatch.setattr(attention_tiles, "capped", counted)
    tile, tiles = 8, 16
    positions, ends = lay_trees(tile * tiles, (tile * tiles, []))
    batch = jax.tree.map(lambda x: x[1:2], make_batch(np.random.default_rng(3), tile * tiles, tile))
    np.testing.assert_array_equal(batch.positions[0], positions)
    np.testing.assert_array_equal(batch.ends[0], ends)
    mesh, params = split_over(model, f"context={parts}")
    compute = jax.jit(over_rows(token_log_probs, model.graphdef, mesh=mesh))
    for each in (batch, dataclasses.replace(batch, tokens=batch.targets)):
        jax.block_until_ready(compute(params, each))
    jax.effects_barrier()
    assert compute._cache_size() == 1  # type: ignore[attr-defined]
    pairs = 2 * model.config.num_layers * tiles * (tiles + 1) // 2
    assert visits == dict.fromkeys(range(parts), pairs // parts)


def test_pieces_of_a_row_are_early_and_late():
    rows = np.arange(48).reshape(2, 24)
    laid = np.asarray(to_devices(jnp.asarray(rows), 4)).reshape(4, 2, 6)
    for device, early, late in [(0, 0, 21), (1, 3, 18), (2, 6, 15), (3, 9, 12)]:
        for row in range(2):
            own = [*range(early, early + 3), *range(late, late + 3)]
            assert laid[device, row].tolist() == [24 * row + token for token in own]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["context=8", "data=2,context=4"])
def test_law_7_the_gradient_of_a_long_sequence_over_context(shape, model):
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(2):
        ids = rng.integers(0, 61, 500).astype(np.int32)
        rows.append([WeightedIds(ids=ids, weights=(np.arange(500) > 20).astype(np.float32))])
    batch = jax.tree.map(jax.numpy.asarray, make_sft_batch(rows, length=512, tile=32))

    def slope(mesh, params):
        compute = make_loss_and_grads(model.graphdef, mesh=mesh)
        return jax.jit(compute)(*split_params(params, ("*",)), batch)[2]

    mesh, params = split_over(model, shape)
    whole = slope(None, model.params)
    for ours, theirs in zip(
        jax.tree.leaves(slope(mesh, params)), jax.tree.leaves(whole), strict=True
    ):
        scale = np.abs(np.asarray(theirs)).max()
        assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 2e-5 * scale
