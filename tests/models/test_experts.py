"""Routers and experts: the rules of the references, one token and one expert at a time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from instructjax.errors import ModelError
from instructjax.models.config import DecoderConfig
from instructjax.models.experts import Experts, route, route_by_sigmoid
from instructjax.models.families import family_for_hf
from instructjax.models.grouped import grouped_matmul

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
FILE = Path("config.json")


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_router_by_softmax():
    logits = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    for normalize in (False, True):
        weights, chosen = route(jnp.asarray(logits), 3, normalize=normalize)
        for row, w, c in zip(logits, weights, chosen, strict=True):
            best = np.argsort(-row)[:3]
            assert c.tolist() == best.tolist()
            # normalized over the chosen: what GPT-OSS does by the softmax of their logits alone
            expected = softmax(row[best]) if normalize else softmax(row)[best]
            np.testing.assert_allclose(w, expected, rtol=1e-5)


def test_router_by_sigmoid_takes_the_best_of_the_best_groups():
    rng = np.random.default_rng(1)
    logits, correction = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=8)
    weights, chosen = route_by_sigmoid(
        jnp.asarray(logits),
        jnp.asarray(correction, jnp.float32),
        3,
        normalize=True,
        groups=4,
        groups_used=2,
    )
    differ = 0
    for row, w, c in zip(logits, weights, chosen, strict=True):
        scores = 1 / (1 + np.exp(-row.astype(np.float64)))
        corrected = scores + correction
        strength = [corrected[2 * g] + corrected[2 * g + 1] for g in range(4)]
        used = sorted(range(4), key=lambda g: -strength[g])[:2]
        allowed = [i for i in range(8) if i // 2 in used]
        best = sorted(allowed, key=lambda i: -corrected[i])[:3]
        assert c.tolist() == best
        np.testing.assert_allclose(w, scores[best] / scores[best].sum(), rtol=1e-5)
        differ += best != sorted(range(8), key=lambda i: -corrected[i])[:3]
    assert differ > 5  # groups decide something


def small(**fields):
    shape = json.loads((FOLDER / "gpt-oss" / "config.json").read_text())
    config = family_for_hf(shape, FILE).config_from_hf(shape, FILE)
    return dataclasses.replace(config, **fields)


@pytest.mark.parametrize(
    "fields", [{"swiglu_limit": 0.7}, {"swiglu_limit": None, "expert_bias": False}]
)
def test_experts_are_a_loop_over_tokens(fields):
    config: DecoderConfig = small(**fields)
    module = Experts(config, jnp.dtype("float32"))
    rng = np.random.default_rng(2)
    graphdef, params = nnx.split(module)
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), params)
    x = rng.normal(size=(11, config.hidden_size)).astype(np.float32)
    found = nnx.merge(graphdef, params)(jnp.asarray(x))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(params))
    for token, out in zip(x.astype(np.float64), found, strict=True):
        logits = token @ p["router"]["kernel"] + p["router"].get("bias", 0)
        best = np.argsort(-logits)[:2]
        total = 0
        for weight, e in zip(softmax(logits[best]), best, strict=True):
            gate, up = token @ p["gate"][e], token @ p["up"][e]
            if config.expert_bias:
                gate, up = gate + p["gate_bias"][e], up + p["up_bias"][e]
            if config.swiglu_limit is None:
                inner = gate / (1 + np.exp(-gate)) * up
            else:
                gate, up = np.minimum(gate, 0.7), np.clip(up, -0.7, 0.7)
                inner = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            y = inner @ p["down"][e] + (p["down_bias"][e] if config.expert_bias else 0)
            total += weight * y
        np.testing.assert_allclose(out, total, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("fixture", "changes", "word"),
    [
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek-v3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek-v3", {"n_group": 4}, "n_group"),
        ("deepseek-v3", {"topk_group": 1}, "n_group"),
        ("deepseek-v3", {"first_k_dense_replace": 3}, "first_k_dense_replace"),
        ("deepseek-v3", {"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ("deepseek-v3", {"model_type": "deepseek_v2"}, "deepseek_v2"),
        ("gpt-oss", {"hidden_act": "gelu"}, "hidden_act"),
        ("gpt-oss", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("gpt-oss", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ("gpt-oss", {"quantization_config": {"quant_method": "awq"}}, "quant_method"),
        ("phi3-past-longrope", {"rope_parameters": {"rope_type": "longrope"}}, "short_factor"),
        ("llama-past-dynamic", {"rope_parameters": {"rope_type": "proportional"}}, "rope_type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fixture, changes, word):
    values = {**json.loads((FOLDER / fixture / "config.json").read_text()), **changes}
    with pytest.raises(ModelError, match=word):
        family_for_hf(values, FILE).config_from_hf(values, FILE)


def test_gpt_oss_without_rotary_options_has_those_of_transformers():
    values = json.loads((FOLDER / "gpt-oss" / "config.json").read_text())
    del values["rope_parameters"]
    rope = family_for_hf(values, FILE).config_from_hf(values, FILE).rope
    assert (rope.kind, rope.theta, rope.factor, rope.truncate) == ("yarn", 150_000.0, 32.0, False)
    assert rope.original_max_positions == 4096


@pytest.mark.parametrize("sizes", [(3, 0, 7, 1), (0, 0, 11, 0), (150, 64, 0, 86), (300, 0, 0, 0)])
def test_grouped_products_are_those_of_each_group(sizes):
    rng = np.random.default_rng(3)
    rows, kernels = rng.normal(size=(sum(sizes), 6)), rng.normal(size=(4, 6, 5))
    upstream = rng.normal(size=(len(rows), 5))
    stops = np.cumsum(sizes)
    parts = [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    args = [jnp.asarray(x, jnp.float32) for x in (rows, kernels)]
    counts = jnp.asarray(sizes, jnp.int32)
    found, pull = jax.vjp(lambda rows, kernels: grouped_matmul(rows, kernels, counts), *args)
    d_rows, d_kernels = pull(jnp.asarray(upstream, jnp.float32))
    for group, part in enumerate(parts):
        kernel, up = kernels[group], upstream[part]
        np.testing.assert_allclose(found[part], rows[part] @ kernel, rtol=0, atol=1e-5)
        np.testing.assert_allclose(d_rows[part], up @ kernel.T, rtol=0, atol=1e-5)
        np.testing.assert_allclose(d_kernels[group], rows[part].T @ up, rtol=0, atol=1e-4)


def test_law_3_grouped_products_where_only_some_axes_are_manual():
    mesh = jax.make_mesh((2, 4), ("fsdp", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    rows, kernels = rng.normal(size=(16, 3)), rng.normal(size=(4, 3, 5))
    sizes = np.array([[3, 0, 5, 0], [0, 6, 1, 1]])
    rows, kernels = (jnp.asarray(x, jnp.float32) for x in (rows, kernels))
    split = jax.shard_map(
        lambda rows, kernels, sizes: grouped_matmul(rows, kernels, sizes[0]),
        mesh=mesh,
        in_specs=(P("fsdp"), P(), P("fsdp")),
        out_specs=P("fsdp"),
        axis_names={"fsdp"},
    )
    found = jax.jit(split)(rows, kernels, jnp.asarray(sizes))
    groups = np.concatenate([np.repeat(np.arange(4), row) for row in sizes])
    expected = np.einsum("mi,mio->mo", rows, np.asarray(kernels)[groups])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_law_2_what_experts_give_a_token_is_the_same_bits_wherever_it_stands():
    config = small()
    graphdef, params = nnx.split(Experts(config, jnp.dtype("float32")))
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), p.dtype), params)
    x = rng.normal(size=(400, config.hidden_size)).astype(np.float32)

    @jax.jit
    def run(x):
        return nnx.merge(graphdef, params)(x)

    order = rng.permutation(400)
    assert np.array_equal(np.asarray(run(x))[order], run(x[order]))
    others = np.concatenate([x[:7], rng.normal(size=(393, config.hidden_size))], dtype=np.float32)
    assert np.array_equal(run(x)[:7], run(others)[:7])
