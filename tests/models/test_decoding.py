"""What a decoding step takes of a decoder: layers once more, the tables as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.decoding import multiply_rows, prepare_decoding
from instructjax.models.linear import matmul
from instructjax.models.lora import LoraConfig, add_lora
from instructjax.prompts.request import Request
from instructjax.sampling import PromptToSample, Sampler, SamplingRules
from instructjax.scoring.engine import score_requests

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"attention_bias": True, "mlp_bias": True, "gated": False},
    "experts": {"num_experts": 4, "experts_per_token": 2},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_is_held_once_more_and_no_table(random_model: Any, name: str) -> None:
    model = random_model(**KINDS[name])
    parts = prepare_decoding(model.graphdef, model.params)
    held = sum(leaf.size for leaf in jax.tree.leaves(parts.layers))
    outside = jax.tree.leaves(parts.outside)
    assert held + sum(leaf.size for leaf in outside) == model.config.num_params
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(model.params)}
    assert all(leaf.unsafe_buffer_pointer() in places for leaf in outside)
    assert len(parts.merge_layers()) == model.config.num_layers


def test_rows_times_kernel_is_the_product_with_its_transpose() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((5, 24), np.float32), rng.standard_normal((24, 40), np.float32)
    found = jax.jit(multiply_rows)(jnp.asarray(kernel.T), jnp.asarray(x))
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    np.testing.assert_allclose(found.T, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.T, matmul(jnp.asarray(x), jnp.asarray(kernel)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [("q", "up"), ("all",)])
def test_law_4_with_lora(random_model: Any, targets: tuple[str, ...]) -> None:
    model = random_model()
    config = LoraConfig(rank=2, alpha=4.0, targets=targets)
    graphdef, params = add_lora(model.graphdef, model.params, config, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map_with_path(
        lambda path, leaf: (
            jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.3)
            if "lora_b" in jax.tree_util.keystr(path)
            else leaf
        ),
        params,
    )
    tuned = replace(model, graphdef=graphdef, params=params)
    ids = rng.integers(0, 61, 9).astype(np.int32)
    prompt = PromptToSample(ids=ids, name="row", num_samples=3, max_new_tokens=8)
    for one in (model, tuned):
        made = list(Sampler(one, rules=SamplingRules(), stop_ids=(), seed=3).sample([prompt]))
        wanted = [
            Request(ids=np.concatenate([ids, x.ids]), spans=((9, 9 + len(x.ids)),), num_bytes=0)
            for x in made
        ]
        for x, scored in zip(made, score_requests(one, wanted), strict=True):
            np.testing.assert_allclose(x.token_log_probs, scored.token_log_probs, atol=1e-5)
    plain, lora = (next(iter(score_requests(x, wanted))).token_log_probs for x in (model, tuned))
    assert np.abs(plain - lora).max() > 1e-3
