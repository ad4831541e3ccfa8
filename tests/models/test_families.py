"""Configurations of the Llama family, from both kinds of file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from instructjax.errors import ModelError
from instructjax.models.config import DecoderConfig, RopeConfig
from instructjax.models.families import family_for_gguf, family_for_hf
from instructjax.models.families.llama import LLAMA

FILE = Path("config.json")

# Llama 3.2 1B, as published.
LLAMA_32 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_32_CONFIG = DecoderConfig(
    family="llama",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    norm_eps=1e-5,
    max_positions=131072,
    rope=RopeConfig(
        theta=500000.0,
        kind="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    ),
    tie_embeddings=True,
)


def from_hf(**changes) -> DecoderConfig:
    values = {**LLAMA_32, **changes}
    return LLAMA.config_from_hf({k: v for k, v in values.items() if v != "absent"}, FILE)


def test_a_published_configuration():
    assert family_for_hf(LLAMA_32, FILE) is LLAMA
    assert from_hf() == LLAMA_32_CONFIG
    # 1.24 billion parameters is what the model card says
    assert round(LLAMA_32_CONFIG.num_params / 1e9, 2) == 1.24


def test_the_newer_spelling_of_rope_gives_the_same():
    parameters = {**LLAMA_32["rope_scaling"], "rope_theta": 500000.0}
    new = from_hf(rope_scaling="absent", rope_theta="absent", rope_parameters=parameters)
    assert new == LLAMA_32_CONFIG


def test_defaults_are_those_of_transformers():
    small = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LLAMA.config_from_hf(small, FILE)
    assert (config.num_kv_heads, config.head_dim, config.max_positions) == (4, 8, 2048)
    assert (config.norm_eps, config.rope) == (1e-6, RopeConfig(theta=10000.0))
    assert not (config.tie_embeddings or config.attention_bias or config.mlp_bias)


def test_defaults_agree_with_the_config_class_of_transformers():
    from transformers import LlamaConfig

    older_spelling = {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e5}
    reference = LlamaConfig(**older_spelling)
    config = LLAMA.config_from_hf(reference.to_dict(), FILE)
    assert config.rope == RopeConfig(theta=5e5, kind="linear", factor=4.0)
    assert config.head_dim == reference.head_dim
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.max_positions == reference.max_position_embeddings


@pytest.mark.parametrize(
    ("scaling", "rope"),
    [
        (None, RopeConfig(theta=500000.0)),
        ({"type": "linear", "factor": 2.0}, RopeConfig(theta=500000.0, kind="linear", factor=2.0)),
        (
            {"rope_type": "dynamic", "factor": 4},
            RopeConfig(theta=500000.0, kind="dynamic", factor=4.0, original_max_positions=131072),
        ),
        ({"rope_type": "default"}, RopeConfig(theta=500000.0)),
    ],
)
def test_kinds_of_rope(scaling, rope):
    assert from_hf(rope_scaling=scaling).rope == rope


def test_original_positions_of_llama3_default_to_the_longest_sequence():
    scaling = {**LLAMA_32["rope_scaling"], "original_max_position_embeddings": None}
    assert from_hf(rope_scaling=scaling).rope.original_max_positions == 131072
    outer = from_hf(rope_scaling=scaling, original_max_position_embeddings=4096)
    assert outer.rope.original_max_positions == 4096


BAND = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"embedding_multiplier": 12}, "embedding_multiplier"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"rope_scaling": {"rope_type": "ntk-by-parts", "factor": 4.0}}, "ntk-by-parts"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "short_factor": [1]}}, "short_fa"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "short_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 3}}, "mscale"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": BAND | {"low_freq_factor": 4.0}}, "not below `high_freq_factor`"),
        ({"rope_parameters": {"rope_type": "default"}}, "contradicts"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}, "rope_scaling": None}, "lay"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 5}, "key-value heads"),
        ({"head_dim": 63}, "63"),
        ({"head_dim": None, "hidden_size": 2050}, "hidden_size"),
    ],
)
def test_what_would_change_the_function_is_refused_by_name(changes, named):
    with pytest.raises(ModelError, match=named) as caught:
        from_hf(**changes)
    assert caught.value.file == "config.json"


@pytest.mark.parametrize(
    "changes",
    [
        {"pretraining_tp": 2},
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}},
        {"sliding_window": None, "use_sliding_window": False},
        {"quantization_config": None},
        {"unsloth_version": "2025.1"},
    ],
)
def test_what_does_not_change_the_function_is_passed_over(changes):
    assert from_hf(**changes) == LLAMA_32_CONFIG


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "llama", "architectures": "LlamaForCausalLM"},
        {},
    ],
)
def test_other_families_are_refused_and_the_supported_named(config):
    with pytest.raises(ModelError) as caught:
        family_for_hf(config, FILE)
    if "architectures" not in config or isinstance(config["architectures"], list):
        assert "LlamaForCausalLM" in str(caught.value)
        assert str(config.get("model_type")) in str(caught.value)


def test_other_gguf_architectures_are_refused():
    assert family_for_gguf({"general.architecture": "llama"}, FILE) is LLAMA
    with pytest.raises(ModelError, match="'qwen2moe' is not supported; supported: llama"):
        family_for_gguf({"general.architecture": "qwen2moe"}, FILE)


def llama3_factors_of_llama_cpp(theta, dim, factor, low=1.0, high=4.0, original=8192):
    """The loop of llama.cpp's converter, one frequency after another."""
    out = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 16,
    "llama.context_length": 131072,
    "llama.embedding_length": 2048,
    "llama.feed_forward_length": 8192,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.key_length": 64,
    "llama.attention.value_length": 64,
    # a float32 of the file, widened
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.rope.freq_base": 500000.0,
    "llama.rope.dimension_count": 64,
    "llama.vocab_size": 128256,
}
SHAPES = {"token_embd.weight": (128256, 2048)}


def from_gguf(factors=None, shapes=SHAPES, **changes) -> DecoderConfig:
    metadata = {**GGUF, **{f"llama.{k.replace('__', '.')}": v for k, v in changes.items()}}
    assert LLAMA.config_from_gguf is not None
    return LLAMA.config_from_gguf(metadata, shapes, factors, Path("model.gguf"))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_gives_the_configuration_of_the_folder(factor):
    factors = llama3_factors_of_llama_cpp(500000.0, 64, factor)
    scaling = {**LLAMA_32["rope_scaling"], "factor": factor}
    assert from_gguf(factors) == from_hf(rope_scaling=scaling)


def test_gguf_flags_are_the_presence_of_tensors():
    config = from_gguf(shapes={**SHAPES, "output.weight": (128256, 2048)})
    assert not config.tie_embeddings
    assert from_gguf().tie_embeddings
    biased = from_gguf(shapes={**SHAPES, "blk.0.attn_q.bias": (2048,)})
    assert biased.attention_bias and not biased.mlp_bias


def test_factors_that_are_not_llama3_are_refused():
    factors = llama3_factors_of_llama_cpp(500000.0, 64, 8.0, low=2.0)
    with pytest.raises(ModelError, match="rope_freqs"):
        from_gguf(factors)
    with pytest.raises(ModelError, match="rope_freqs"):
        from_gguf(np.full(8, 2.0, np.float32))


def test_factors_of_one_are_no_scaling():
    assert from_gguf(np.ones(32, np.float32)).rope == RopeConfig(theta=500000.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        {"rope__scale_linear": 4.0},
    ],
)
def test_gguf_linear_scaling(changes):
    assert from_gguf(**changes).rope == RopeConfig(theta=500000.0, kind="linear", factor=4.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expert_count": 8}, "expert_count"),
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, "longrope"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, "original_context"),
        ({"attention__value_length": 32}, "value_length"),
        ({"rope__dimension_count": 32}, "dimension_count"),
        ({"attention__head_count": np.array([32, 16])}, "head_count"),
        ({"feed_forward_length": np.array([8192] * 16)}, "feed_forward_length"),
        ({"logit_scale": 8.0}, "logit_scale"),
        ({"block_count": None}, "block_count"),
    ],
)
def test_gguf_refuses_by_name(changes, named):
    with pytest.raises(ModelError, match=named):
        from_gguf(**changes)
