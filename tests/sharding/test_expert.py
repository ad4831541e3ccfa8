"""Experts and rows over the axis `expert`: the same log-probs and gradients, each device a part."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest

from instructjax.finetuning.batch import WeightedIds, make_sft_batch, stack_batches
from instructjax.finetuning.partition import split_params
from instructjax.finetuning.step import make_loss_and_grads
from instructjax.models.sharded import param_shardings
from instructjax.models.spmd import over_rows
from instructjax.scoring.engine import score_requests
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh
from instructjax.sharding.mesh import parse_mesh

SLOW = pytest.mark.slow
MODELS: dict[str, dict[str, Any]] = {
    "softmax": {"num_experts": 4, "experts_per_token": 2, "expert_bias": True},
    # dense layers before those with experts, and an expert that every token goes through
    "sigmoid": {
        "num_experts": 4,
        "experts_per_token": 2,
        "router": "sigmoid",
        "shared_size": 8,
        "dense_layers": 1,
        "dense_size": 24,
    },
    "dense": {},
}


@pytest.fixture(scope="module")
def model(random_model):
    return lambda name: random_model(seed=7, **MODELS[name])


@pytest.fixture(scope="module")
def alone(model):
    """What one device finds, by model and number of micro-batches; each is computed once."""
    made = {}

    def get(*key):
        if key not in made:
            made[key] = find(model(key[0]), None, model(key[0]).params, micro_batches(key[1]))
        return made[key]

    return get


def find(model, mesh, params, batch):
    """Log-probs of every token of the first rows; the sum, weight and gradient of all."""
    logs = jax.jit(over_rows(token_log_probs, model.graphdef, mesh=mesh))(params, first(batch))
    compute = jax.jit(make_loss_and_grads(model.graphdef, mesh=mesh))
    return logs, *compute(*split_params(params, ("*",)), batch)


def first(batch):
    many = batch.batch.tokens.ndim == 3
    return jax.tree.map(lambda x: x[0], batch.batch) if many else batch.batch


def split_over(model, shape):
    mesh = make_mesh(shape, jax.devices()[: math.prod(parse_mesh(shape).values())])
    return mesh, jax.device_put(model.params, param_shardings(model.config, mesh))


def micro_batches(count):
    """Two, of eight rows of sequences whose weights differ; one has fewer rows of tokens."""
    rng, made = np.random.default_rng(0), []
    for full in (8, 5):
        rows = []
        for _ in range(full):
            sizes = rng.integers(20, 60, 2)
            ids = [rng.integers(0, 61, n).astype(np.int32) for n in sizes]
            weights = [np.append(0, rng.uniform(0, 2, n - 1)).astype(np.float32) for n in sizes]
            pairs = zip(ids, weights, strict=True)
            rows.append([WeightedIds(ids=x, weights=w) for x, w in pairs])
        made.append(make_sft_batch(rows, length=128, num_rows=8, tile=16))
    return stack_batches(made) if count == 2 else made[0]


@pytest.mark.parametrize(
    ("shape", "name", "count"),
    [
        pytest.param("fsdp=2,expert=2", "softmax", 2, marks=SLOW),
        pytest.param("expert=2", "softmax", 1, marks=SLOW),
        pytest.param("data=2,expert=2", "softmax", 2, marks=SLOW),
        pytest.param("expert=2,tensor=2", "softmax", 1, marks=SLOW),
        pytest.param("expert=2,context=2", "softmax", 1, marks=SLOW),
        pytest.param("data=2,fsdp=2,expert=2", "sigmoid", 2, marks=SLOW),
        pytest.param("fsdp=2,expert=2,tensor=2", "sigmoid", 1, marks=SLOW),
        pytest.param("fsdp=2,expert=4", "softmax", 1, marks=SLOW),
        pytest.param("fsdp=2,expert=2", "dense", 1, marks=SLOW),
    ],
)
def test_laws_3_and_7_on_a_mesh_with_expert(shape, name, count, model, alone):
    model, batch = model(name), micro_batches(count)
    mesh, params = split_over(model, shape)
    logs, loss, weight, slopes = find(model, mesh, params, batch)
    expected, total, mass, whole = alone(name, count)
    real = np.asarray(first(batch).ends) > 0
    np.testing.assert_allclose(logs[real], expected[real], atol=1e-5, rtol=0)
    np.testing.assert_allclose([loss, weight], [total, mass], rtol=1e-5)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(slopes), jax.tree.leaves(whole), strict=True
    ):
        scale = np.abs(np.asarray(theirs)).max()
        error = np.abs(np.asarray(ours) - np.asarray(theirs)).max()
        assert error <= 2e-5 * scale, jax.tree_util.keystr(path)
    for ours, param in zip(jax.tree.leaves(slopes), jax.tree.leaves(params), strict=True):
        assert ours.sharding.is_equivalent_to(param.sharding, ours.ndim)


def test_each_device_has_its_part_of_experts_and_of_rows(model):
    """Two of four experts and half of their features; two rows of eight, and the operations of two,
    where loops over tiles are counted as one round on either."""
    model = model("softmax")
    mesh, params = split_over(model, "fsdp=2,expert=2")
    gate = params["layers"]["mlp"]["gate"][...]
    assert gate.addressable_shards[0].data.shape == (2, 4 // 2, 16 // 2, 24)
    assert ShardingRules().parts("batch", mesh) == 4

    def flops(mesh, params):
        compute = over_rows(token_log_probs, model.graphdef, mesh=mesh)
        batch = jax.tree.map(jax.numpy.asarray, micro_batches(1).batch)
        compiled = jax.jit(lambda params: compute(params, batch)).lower(params).compile()
        costs: Any = compiled.cost_analysis()
        return costs["flops"]

    assert flops(mesh, params) < 0.5 * flops(None, model.params)


@pytest.mark.slow
def test_law_2_scores_do_not_depend_on_expert(model):
    from instructjax.prompts.request import Request

    model, rng = model("softmax"), np.random.default_rng(3)
    requests = []
    for size in rng.integers(20, 120, 9):
        ids = rng.integers(0, 61, size).astype(np.int32)
        requests.append(Request(ids=ids, spans=((int(size) // 2, int(size)),), num_bytes=1))
    mesh, params = split_over(model, "fsdp=2,expert=2")
    split = dataclasses.replace(model, params=params, mesh=mesh, rules=ShardingRules())
    whole = [s.token_log_probs for s in score_requests(model, requests)]
    found = [s.token_log_probs for s in score_requests(split, requests)]
    for ours, theirs in zip(found, whole, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5
