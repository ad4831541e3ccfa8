"""Laws 2 and 3 on a mesh: scores and gradients of split parameters are those of one device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.batching.packing import pack
from instructjax.errors import UsageError
from instructjax.models.model import load_model
from instructjax.models.sharded import param_axes, param_shardings, tell_whole
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh

FIXTURES = Path(__file__).parents[1] / "fixtures"
KINDS = {
    "dense": {"attention_bias": True},
    "experts": {"num_experts": 4, "experts_per_token": 2, "qk_norm": "all"},
}


@pytest.fixture(scope="module")
def batch():
    """Eight rows of one length; nothing is like in any two."""
    rng = np.random.default_rng(0)
    requests = [
        Request(ids=rng.integers(0, 61, n).astype(np.int32), spans=((1, n),), num_bytes=0)
        for n in (32, 30, 32, 17, 32, 31, 29, 32)
    ]
    rows = [row.batch for request in requests for row in pack([request])]
    return jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *rows)


def run(model, params, batch):
    def total(params):
        logs = token_log_probs(model.graphdef, params, batch)
        return logs.sum(), logs

    return jax.value_and_grad(total, has_aux=True)(params)


@pytest.fixture(scope="module")
def alone(random_model, batch):
    found = {}
    for kind, fields in KINDS.items():
        model = random_model(**fields)
        (_, logs), grads = jax.jit(lambda p, m=model: run(m, p, batch))(model.params)
        found[kind] = (model, np.asarray(logs), jax.tree.map(np.asarray, grads))
    return found


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        pytest.param("dense", "data=8", marks=pytest.mark.slow),
        pytest.param("dense", "fsdp=8", marks=pytest.mark.slow),
        pytest.param("dense", "data=2,fsdp=2,tensor=2", marks=pytest.mark.slow),
        pytest.param("experts", "fsdp=8", marks=pytest.mark.slow),
        ("experts", "data=2,expert=2,tensor=2"),
    ],
)
def test_law_3_a_mesh_changes_no_score_and_no_gradient(kind, shape, alone, batch):
    model, logs, grads = alone[kind]
    mesh, rules = make_mesh(shape), ShardingRules()
    params = jax.device_put(model.params, param_shardings(model.config, mesh, rules))
    if "expert=" in shape:
        (gate,) = (x for p, x in flat(params) if p == "layers.mlp.gate")
        assert gate.addressable_shards[0].data.shape == (2, 2, 16, 12)
    rows = jax.device_put(batch, NamedSharding(mesh, rules.spec(("batch",), mesh)))
    (_, found), slopes = jax.jit(lambda p, b: run(model, p, b))(params, rows)
    assert np.abs(np.asarray(found) - logs).max() < 1e-5
    for theirs, ours in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())


def flat(state):
    return [
        (".".join(str(key.key) for key in path), leaf)
        for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(state))
    ]


def test_a_model_loads_onto_a_mesh(tiny_model):
    whole = tiny_model
    split = load_model(FIXTURES / "llama-tied", mesh=make_mesh("fsdp=4,tensor=2"))
    wanted = param_shardings(whole.config, make_mesh("fsdp=4,tensor=2"))
    triples = zip(flat(whole.params), flat(split.params), flat(wanted), strict=True)
    for (name, theirs), (same, ours), (_, sharding) in triples:
        assert name == same and ours.sharding == sharding
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))
    (table,) = (x for p, x in flat(split.params) if p == "embed.embedding")
    part = table.addressable_shards[0].data.shape
    assert part == (table.shape[0] // 2, table.shape[1] // 4)


def test_heads_that_do_not_divide_are_refused_with_numbers_that_would(random_model):
    model = random_model(num_heads=6, num_kv_heads=3)
    with pytest.raises(UsageError, match="6 heads do not divide over tensor=4.*tensor of 1 on 8"):
        param_shardings(model.config, make_mesh("fsdp=2,tensor=4"))
    with pytest.raises(UsageError, match="2 experts do not divide over expert=8"):
        config = random_model(num_experts=2, experts_per_token=1).config
        param_shardings(config, make_mesh("expert=8"))


@pytest.mark.parametrize(
    ("sizes", "mesh", "says"),
    [
        (
            {"num_heads": 9, "num_kv_heads": 3, "hidden_size": 144},
            "tensor=8",
            "1 on 8 devices, such as fsdp=8",
        ),
        (
            {"num_heads": 6, "num_kv_heads": 2},
            "data=2,tensor=4",
            "1, 2 on 8 devices, such as data=2,fsdp=2,t",
        ),
        (
            {"num_heads": 3, "num_kv_heads": 3, "hidden_size": 12},
            "tensor=8",
            "1 on 8 devices, such as data=8",
        ),
    ],
)
def test_the_mesh_that_is_suggested_fits(random_model, sizes, mesh, says):
    config = dataclasses.replace(random_model().config, **sizes)
    with pytest.raises(UsageError, match=f"tensor of {says}") as caught:
        param_shardings(config, make_mesh(mesh))
    param_shardings(config, make_mesh(str(caught.value).rpartition("such as ")[2]))


def test_a_hidden_size_that_does_not_divide_leaves_parameters_whole(random_model):
    config = dataclasses.replace(random_model().config, hidden_size=64)
    mesh = make_mesh("fsdp=6", jax.devices()[:6])
    said = tell_whole(config, mesh, ShardingRules())
    assert said is not None and "of 64 does not divide over fsdp=6" in said
    assert "of 1, 2 on 6 devices, such as data=3,fsdp=2" in said
    shardings = dict(flat(param_shardings(config, mesh)))
    assert shardings["layers.mlp.down.kernel"].spec == P(None, None, None)


def test_a_vocabulary_that_does_not_divide_is_left_whole(random_model):
    shardings = dict(flat(param_shardings(random_model().config, make_mesh("fsdp=4,tensor=2"))))
    assert shardings["embed.embedding"].spec == P(None, "fsdp")
    assert shardings["layers.mlp.down.kernel"].spec == P(None, "tensor", "fsdp")


def test_every_matrix_of_every_family_is_named():
    from instructjax.models.config import DecoderConfig, LatentAttention
    from instructjax.models.model import abstract_decoder

    shape: dict[str, Any] = {
        "family": "any",
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 4,
        "norm_eps": 1e-5,
        "max_positions": 8,
        "learned_positions": True,
        "num_experts": 2,
        "experts_per_token": 1,
        "expert_bias": True,
        "shared_size": 8,
        "dense_layers": 1,
        "dense_size": 8,
    }
    latent = LatentAttention(rank=4, query_rank=4, rotary_dim=2, value_dim=4)
    options: tuple[dict[str, Any], ...] = (
        {"latent": latent},
        {"attention_bias": True, "mlp_bias": True},
    )
    for more in options:
        _, state = abstract_decoder(DecoderConfig(**shape, **more), "float32")
        for path, leaf in flat(state):
            matrix = leaf.ndim - ("layers" in path)
            named = [n for n in param_axes(path, leaf.ndim) if n not in (None, "layers")]
            assert named or matrix < 2, path
