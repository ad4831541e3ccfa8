"""LoRA: law 7 (merged is applied), what is trained, and what is asked for in vain."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.finetuning.losses import sft_loss
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.partition import name_param, split_params
from instructjax.finetuning.state import make_state
from instructjax.finetuning.step import make_train_step
from instructjax.models.families import FAMILIES, family_for_hf
from instructjax.models.lora import LORA, LoraConfig, add_lora, merge_lora
from instructjax.models.model import abstract_decoder
from instructjax.scoring.log_probs import token_log_probs

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def batch(draw, on_device):
    rng = np.random.default_rng(1)
    return on_device([draw(rng, (14, 20)), draw(rng, (30,))], length=48, tile=16)


_log_probs = jax.jit(token_log_probs, static_argnums=0)


def log_probs(graphdef, params, batch):
    return np.asarray(_log_probs(graphdef, params, batch.batch))


@pytest.mark.parametrize("stable", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_law_7_merged_is_applied_and_the_base_is_untouched(random_model, batch, stable):
    made = random_model(seed=1, attention_bias=True)
    config = LoraConfig(rank=3, alpha=6.0, rank_stabilized=stable)
    graphdef, params = add_lora(made.graphdef, made.params, config, jax.random.key(0))
    base = log_probs(made.graphdef, made.params, batch)
    np.testing.assert_array_equal(log_probs(graphdef, params, batch), base)

    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-2), 8)
    state = make_state(params, optimizer, trainable=LORA)
    step = make_train_step(graphdef, optimizer)
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 1
    applied = log_probs(graphdef, state.params, batch)
    assert np.abs(applied - base).max() > 0.5
    plain, merged = merge_lora(graphdef, state.params)
    assert plain == made.graphdef
    assert jax.tree.structure(merged) == jax.tree.structure(made.params)
    np.testing.assert_allclose(log_probs(plain, merged, batch), applied, atol=1e-4)

    _, frozen = split_params(state.params, LORA)
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(made.params), strict=True):
        np.testing.assert_array_equal(a, b)
    # and the kernels moved by s A B, computed here in float64
    q = state.params["layers"]["attention"]["q"]
    a, b = (np.asarray(q[name][...], np.float64) for name in ("lora_a", "lora_b"))
    scale = 6 / np.sqrt(3) if stable else 2.0
    moved = np.asarray(merged["layers"]["attention"]["q"]["kernel"][...]) - np.asarray(
        made.params["layers"]["attention"]["q"]["kernel"][...]
    )
    np.testing.assert_allclose(moved, scale * (a @ b), atol=1e-5)


@pytest.mark.slow
def test_gradients_of_a_frozen_base_are_not_computed(random_model, batch):
    made = random_model(seed=1, tie_embeddings=False)
    graphdef, params = add_lora(made.graphdef, made.params, LoraConfig(rank=2), jax.random.key(0))
    trainable, frozen = split_params(params, LORA)

    def flops(function, *args):
        analysis = jax.jit(function).lower(*args).compile().cost_analysis()
        assert analysis is not None
        return analysis["flops"]

    from flax import nnx

    def lora(trainable):
        return sft_loss(graphdef, nnx.merge_state(trainable, frozen), batch)[0]

    full = flops(jax.grad(lambda p: sft_loss(made.graphdef, p, batch)[0]), made.params)
    assert flops(jax.grad(lora), trainable) < full


@pytest.mark.slow
def test_parameters_by_pattern(random_model, batch):
    made = random_model(seed=1)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 4)
    patterns = ("layers.mlp.*", "*norm*")
    state = make_state(made.params, optimizer, trainable=patterns)
    state, _ = make_train_step(made.graphdef, optimizer)(state, batch)
    moved = {
        name_param(path): not np.array_equal(a, b)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(state.params), jax.tree.leaves(made.params), strict=True
        )
    }
    assert {name for name, was in moved.items() if was} == {
        name for name in moved if name.startswith("layers.mlp.") or "norm" in name
    }
    assert any(moved.values()) and not all(moved.values())


@pytest.mark.slow
def test_mixed_precision_keeps_float32_master_weights(random_model, batch):
    made = random_model(seed=1)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5, weight_decay=0.0), 20)
    state = make_state(made.params, optimizer)
    step = make_train_step(made.graphdef, optimizer, compute_dtype="bfloat16")
    before = np.asarray(state.trainable["layers"]["mlp"]["up"]["kernel"][...])
    for _ in range(3):
        state, metrics = step(state, batch)
    exact = sft_loss(made.graphdef, state.params, batch)
    assert float(metrics.loss) == pytest.approx(float(exact[0] / exact[1]), abs=0.1)
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    after = np.asarray(state.trainable["layers"]["mlp"]["up"]["kernel"][...])
    # steps far below bfloat16's resolution are not lost
    change = np.abs(after - before)
    assert 0 < change.max() < 1e-4
    assert (np.abs(before) > 0.5).any() and (change[np.abs(before) > 0.5] > 0).mean() > 0.9


LLAMA_LIKE = {"q", "k", "v", "o", "gate", "up", "down"}
ATTENTION = {"q", "k", "v", "o"}
DEFAULTS = {
    "gpt2": LLAMA_LIKE - {"gate"},
    "gpt_neox": LLAMA_LIKE - {"gate"},
    **dict.fromkeys(("mixtral", "qwen3_moe", "olmoe", "gpt_oss"), ATTENTION),
    "deepseek_v3": {"q_down", "q_up", "kv_down", "kv_up", "o", "gate", "up", "down"},
}


def test_default_targets_are_there_in_every_family():
    """Of attention and dense MLPs; `test_families_torch_live.py` holds them against PEFT's."""
    folders = (FIXTURES / "families").glob("*/config.json")
    configs = {}
    for file in [FIXTURES / "llama-tied" / "config.json", *sorted(folders)]:
        values = json.loads(file.read_text())
        family = family_for_hf(values, file)
        configs.setdefault(family.model_type, family.config_from_hf(values, file))
    assert configs.keys() == {family.model_type for family in FAMILIES}
    for name, config in configs.items():
        graphdef, params = abstract_decoder(config, "float32")
        made = jax.eval_shape(
            lambda p, graphdef=graphdef: add_lora(graphdef, p, LoraConfig(), jax.random.key(0))[1],
            params,
        )
        paths = [name_param(path) for path, _ in jax.tree.leaves_with_path(made)]
        found = {path.split(".")[-2] for path in paths if path.endswith("lora_a")}
        assert found == DEFAULTS.get(name, LLAMA_LIKE), name
        if name == "deepseek_v3":  # dense layers and the expert of all tokens too
            assert "dense_layers.mlp.up.lora_a" in paths
            assert "layers.mlp.shared.up.lora_b" in paths


def test_dense_layers_and_the_shared_expert_are_merged(tmp_path):
    file = FIXTURES / "families" / "deepseek-v3" / "config.json"
    config = family_for_hf(json.loads(file.read_text()), file).config_from_hf(
        json.loads(file.read_text()), file
    )
    graphdef, abstract = abstract_decoder(config, "float32")
    base = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), abstract)
    lora, params = add_lora(graphdef, base, LoraConfig(rank=2, alpha=6.0), jax.random.key(0))
    chosen = split_params(params, ("*.lora_b",))[0]
    assert len(jax.tree.leaves(chosen)) == 16
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf + 0.5 if name_param(path).endswith("lora_b") else leaf, params
    )
    plain, merged = merge_lora(lora, params)
    assert plain == graphdef
    for stack, name in (("dense_layers", None), ("layers", "shared")):
        mlp, found = params[stack]["mlp"], merged[stack]["mlp"]
        mlp, found = (mlp, found) if name is None else (mlp[name], found[name])
        a, b = (np.asarray(mlp["down"][n][...], np.float64) for n in ("lora_a", "lora_b"))
        kernel = np.asarray(found["down"]["kernel"][...])
        np.testing.assert_allclose(kernel, 1 + 3 * (a @ b), atol=1e-5)


def test_what_is_not_there_is_refused(random_model):
    made = random_model()
    with pytest.raises(UsageError, match="no projection 'qkv'"):
        add_lora(made.graphdef, made.params, LoraConfig(targets=("qkv",)), jax.random.key(0))
    with pytest.raises(UsageError, match="LoRA without targets"):
        add_lora(made.graphdef, made.params, LoraConfig(targets=()), jax.random.key(0))
    with pytest.raises(UsageError, match="a rank of 0"):
        add_lora(made.graphdef, made.params, LoraConfig(rank=0), jax.random.key(0))
    with pytest.raises(UsageError, match=r"no parameter is called 'layers\.nothing"):
        split_params(made.params, ("layers.nothing.*",))
