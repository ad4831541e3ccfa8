"""Ten steps of fine-tuning against PyTorch's: full, LoRA and rank-stabilized LoRA.

The golden file holds losses, norms, learning rates and samples of every trained parameter; with
torch installed, `-m torch` runs both side by side and compares every number.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.finetuning.batch import WeightedIds, make_sft_batch, stack_batches
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.partition import name_param
from instructjax.finetuning.state import make_state
from instructjax.finetuning.step import make_train_step
from instructjax.models.lora import LORA, LoraConfig, add_lora

RUNS = ["full", *(pytest.param(run, marks=pytest.mark.slow) for run in ("lora", "rslora"))]
LAYER_NAMES = {
    "attention_norm.scale": "input_layernorm.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    **{f"attention.{x}.kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"mlp.{x}.kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}


def make_batch(sequences):
    """Two micro-batches of unequal weight: packed rows, and short ones that are padded."""
    every = [WeightedIds(ids=ids, weights=weights) for ids, weights in sequences]
    first, second = [every[:2], every[2:4]], [every[4:5], every[5:]]
    return stack_batches([make_sft_batch(rows, length=128, tile=32) for rows in (first, second)])


def train(model, reference, run):
    """The same ten steps here; parameters under PyTorch's names and in its layout."""
    graphdef, params = model.graphdef, model.params
    if run != "full":
        config = LoraConfig(
            targets=tuple(reference.TARGETS), rank_stabilized=run == "rslora", **reference.LORA
        )
        graphdef, params = add_lora(graphdef, params, config, jax.random.key(0))
        tree = params["layers"]
        for name, (a, b) in reference.make_adapters().items():
            block = tree["attention" if name in "qkvo" else "mlp"][name]
            block["lora_a"][...], block["lora_b"][...] = jnp.asarray(a), jnp.asarray(b)
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=reference.RATE,
            warmup_steps=reference.WARMUP,
            clip_norm=reference.CLIP,
            weight_decay=reference.DECAY,
        ),
        reference.STEPS,
    )
    state = make_state(params, optimizer, trainable=("*",) if run == "full" else LORA)
    step = make_train_step(graphdef, optimizer)
    found: dict[str, Any] = {"losses": [], "grad_norms": [], "rates": []}
    for sequences in reference.make_steps():
        state, metrics = step(state, make_batch(sequences))
        assert bool(metrics.finite)
        found["losses"].append(float(metrics.loss))
        found["grad_norms"].append(float(metrics.grad_norm))
        found["rates"].append(float(metrics.learning_rate))
    assert int(state.step) == reference.STEPS
    assert step._cache_size() == 1  # type: ignore
    found["trained"] = dict(in_their_names(state.trainable, reference))
    return found


def in_their_names(params, reference):
    for path, leaf in jax.tree.leaves_with_path(params):
        name, values = name_param(path), np.asarray(leaf)
        if name == "embed.embedding":
            yield "model.embed_tokens.weight", values
        elif name == "final_norm.scale":
            yield "model.norm.weight", values
        else:
            name = name.removeprefix("layers.")
            for layer, own in enumerate(values):
                own = own.T if own.ndim == 2 else own
                if "lora" in name:
                    _, target, kind = name.split(".")
                    yield reference.adapter_name(target, layer, kind[-1].upper()), own
                else:
                    yield f"model.layers.{layer}.{LAYER_NAMES[name]}", own


@pytest.fixture(scope="module", params=RUNS)
def ours(request, tiny_model, reference):
    return request.param, train(tiny_model, reference, request.param)


def compare_curves(found, expected):
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["grad_norms"], expected["grad_norms"], rtol=2e-5)
    np.testing.assert_allclose(found["rates"], expected["rates"], rtol=1e-5, atol=1e-12)


def test_ten_steps_are_those_of_pytorch(ours, reference):
    run, found = ours
    expected = json.loads(reference.EXPECTED.read_text())[run]
    assert max(expected["grad_norms"]) > 2 * reference.CLIP  # so that clipping is tested
    compare_curves(found, expected)
    assert set(found["trained"]) == set(expected["trained"])
    for name, values in expected["trained"].items():
        sample = np.asarray(reference.sample(name, found["trained"][name]))
        size = np.abs(values).max()
        np.testing.assert_allclose(sample, values, rtol=0, atol=1e-5 * size, err_msg=name)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_every_parameter_is_that_of_pytorch_live(ours, reference):
    pytest.importorskip("torch")
    run, found = ours
    if run != "full":
        pytest.importorskip("peft")
    expected = reference.RUNS[run]()
    compare_curves(found, expected)
    assert set(found["trained"]) == set(expected["trained"])
    for name, values in expected["trained"].items():
        error = np.linalg.norm(found["trained"][name] - values)
        assert error <= 1e-5 * np.linalg.norm(values), name
