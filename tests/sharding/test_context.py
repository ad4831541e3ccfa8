"""Long rows over the axis `context`: the same log-probs and gradients, and less on each device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from instructjax.batching.packing import pack
from instructjax.finetuning.batch import WeightedIds, make_sft_batch
from instructjax.finetuning.losses import sft_loss
from instructjax.models.sharded import param_shardings
from instructjax.models.spmd import over_rows
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh

LENGTH = 1000


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(seed=5)


def split_over(model, shape):
    mesh, rules = make_mesh(shape), ShardingRules()
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


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["context=8", "data=2,context=4"])
def test_law_7_the_gradient_of_a_long_sequence_over_context(shape, model):
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(2):
        ids = rng.integers(0, 61, 500).astype(np.int32)
        rows.append([WeightedIds(ids=ids, weights=(np.arange(500) > 20).astype(np.float32))])
    batch = jax.tree.map(jax.numpy.asarray, make_sft_batch(rows, length=512))

    def slope(mesh, params):
        sums = over_rows(sft_loss, model.graphdef, mesh=mesh, total=True)
        return jax.jit(jax.grad(lambda p: sums(p, batch)[0]))(params)

    mesh, params = split_over(model, shape)
    whole = slope(None, model.params)
    for ours, theirs in zip(
        jax.tree.leaves(slope(mesh, params)), jax.tree.leaves(whole), strict=True
    ):
        scale = np.abs(np.asarray(theirs)).max()
        assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 2e-5 * scale
