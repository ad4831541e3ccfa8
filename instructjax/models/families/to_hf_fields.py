"""What each family's config.json says besides, or otherwise than, Llama's: its words, written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from instructjax.models.config import DecoderConfig, RopeConfig

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def _tidy(value: float) -> float:
    """Without the digits that powers and inverses leave behind.

    >>> _tidy(1 / (1 / 49)), _tidy(0.1 + 0.2)
    (49.0, 0.3)
    """
    return float(f"{value:.12g}")


def rope_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The base of the rotary positions and their scaling."""
    rope = config.rope
    values: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.kind in ("default", "none"):
        return values
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    if rope.kind in ("linear", "dynamic", "llama3", "yarn"):
        scaling["factor"] = rope.factor
    if rope.kind == "dynamic":
        values["max_position_embeddings"] = rope.original_max_positions
    if rope.kind in ("llama3", "yarn", "longrope"):
        scaling["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        scaling |= {"truncate": rope.truncate, "attention_factor": rope.attention_factor}
    if rope.kind == "longrope":
        values["original_max_position_embeddings"] = rope.original_max_positions
        scaling["attention_factor"] = rope.attention_factor
        scaling["short_factor"] = list(rope.divisors)
        scaling["long_factor"] = list(rope.long_divisors)
    return {**values, "rope_scaling": scaling}


def _partial(config: DecoderConfig) -> float:
    return (config.rotary_dim or config.head_dim) / config.head_dim


def _window(config: DecoderConfig) -> int | None:
    windows = {kind.window for kind in config.layers if kind.window}
    return max(windows) if windows else None


def _slides(config: DecoderConfig) -> list[bool]:
    return [bool(kind.window) for kind in config.layers] or [False] * config.num_layers


def _layer_types(config: DecoderConfig) -> dict[str, Any]:
    names = {True: "sliding_attention", False: "full_attention"}
    window = _window(config)
    return {
        "layer_types": [names[slides] for slides in _slides(config)],
        **({} if window is None else {"sliding_window": window}),
    }


def _sliding(config: DecoderConfig) -> dict[str, Any]:
    return {"sliding_window": _window(config)}


def _bias(config: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": config.attention_bias}


def _biases(config: DecoderConfig) -> dict[str, Any]:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _qwen(config: DecoderConfig) -> dict[str, Any]:
    slides = _slides(config)
    first = slides.index(True) if any(slides) else config.num_layers
    window = {"use_sliding_window": any(slides), "max_window_layers": first}
    return {**window, "sliding_window": None, **_layer_types(config)}


def _experts(config: DecoderConfig, count: str) -> dict[str, Any]:
    return {count: config.num_experts, "num_experts_per_tok": config.experts_per_token}


def _some_experts(config: DecoderConfig) -> dict[str, Any]:
    return {**_experts(config, "num_experts"), "norm_topk_prob": config.normalize_experts}


def _qwen3_moe(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_bias(config),
        **_some_experts(config),
        "moe_intermediate_size": config.intermediate_size,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": any(_slides(config)),
        **_sliding(config),
    }


def _smollm3(config: DecoderConfig) -> dict[str, Any]:
    layers = config.layers
    turns = [int(kind.rope.kind != "none") for kind in layers]
    rope = next((kind.rope for kind in layers if kind.rope.kind != "none"), config.rope)
    return {
        **_biases(config),
        **rope_to_hf(dataclasses.replace(config, rope=rope)),
        "no_rope_layers": turns or [1] * config.num_layers,
        "use_sliding_window": _window(config) is not None,
        **_layer_types(config),
    }


def _gemma(config: DecoderConfig) -> dict[str, Any]:
    return {**_bias(config), "hidden_activation": ACTIVATIONS[config.activation]}


def _gemma2(config: DecoderConfig) -> dict[str, Any]:
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = _tidy(scale**-2)
    return {
        **_gemma(config),
        **_layer_types(config),
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _local(config: DecoderConfig) -> RopeConfig:
    return next((kind.rope for kind in config.layers if kind.window), config.rope)


def _gemma3(config: DecoderConfig) -> dict[str, Any]:
    return {**_gemma2(config), "rope_local_base_freq": _local(config).theta}


def _olmo3(config: DecoderConfig) -> dict[str, Any]:
    # Only the newer spelling has a word for each kind of layer.
    kinds = {"full_attention": config.rope, "sliding_attention": _local(config)}
    spelled: dict[str, Any] = {}
    for name, rope in kinds.items():
        old = rope_to_hf(dataclasses.replace(config, rope=rope))
        scaling = old.get("rope_scaling", {"rope_type": "default"})
        spelled[name] = {"rope_theta": rope.theta, **scaling}
    values = {**_bias(config), **_layer_types(config), "rope_parameters": spelled}
    return {**values, "rope_theta": None, "rope_scaling": None}


def _stablelm(config: DecoderConfig) -> dict[str, Any]:
    return {
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel,
        "use_qkv_bias": config.attention_bias,
        "qk_layernorm": config.qk_norm is not None,
        "partial_rotary_factor": _partial(config),
    }


def _gpt_neox(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_bias(config),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel,
        "rotary_pct": _partial(config),
        "rotary_emb_base": config.rope.theta,
    }


def _gpt2(config: DecoderConfig) -> dict[str, Any]:
    act = "gelu_new" if config.activation == "gelu_tanh" else ACTIVATIONS[config.activation]
    return {
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,  # read by llama.cpp's converter
        "activation_function": act,
        "hidden_act": act,
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.attention_scale is None,
    }


def _cohere(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_bias(config),
        "layer_norm_eps": config.norm_eps,
        "logit_scale": config.logit_multiplier,
    }


def _cohere2(config: DecoderConfig) -> dict[str, Any]:
    rope = _local(config)
    values = {**_cohere(config), **_layer_types(config), "rotary_pct": 1.0}
    return {**values, **rope_to_hf(dataclasses.replace(config, rope=rope))}


def _granite(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_biases(config),
        "attention_multiplier": config.attention_scale or config.head_dim**-0.5,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": _tidy(1 / config.logit_multiplier),
    }


def _gpt_oss(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_bias(config),
        **_layer_types(config),
        **_experts(config, "num_local_experts"),
        "swiglu_limit": config.swiglu_limit,
        "swiglu_alpha": config.swiglu_alpha,
        # without one, transformers takes that of the published models
        **({"rope_scaling": {"rope_type": "default"}} if config.rope.kind == "default" else {}),
    }


def _deepseek(config: DecoderConfig) -> dict[str, Any]:
    latent = config.latent
    assert latent is not None  # the family has it
    values: dict[str, Any] = {
        **_bias(config),
        **_experts(config, "n_routed_experts"),
        "norm_topk_prob": config.normalize_experts,
        # transformers knows no other, but llama.cpp's converter takes the softmax if not told.
        "scoring_func": "sigmoid",
        "intermediate_size": config.dense_size,
        "moe_intermediate_size": config.intermediate_size,
        "n_shared_experts": config.shared_size // config.intermediate_size,
        "first_k_dense_replace": config.dense_layers,
        "n_group": config.router_groups,
        "topk_group": config.router_groups_used,
        "routed_scaling_factor": config.router_multiplier,
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.query_rank or None,
        "qk_rope_head_dim": latent.rotary_dim,
        "qk_nope_head_dim": config.head_dim - latent.rotary_dim,
        "v_head_dim": latent.value_dim,
        "rope_interleave": latent.interleaved,
        "head_dim": latent.rotary_dim,
    }
    # Scores grow with the stretch of YaRN by the square of 0.1 m log(factor) + 1.
    growth = (config.attention_scale or config.head_dim**-0.5) * config.head_dim**0.5
    if config.rope.kind == "yarn" and not math.isclose(growth, 1):
        weight = _tidy((math.sqrt(growth) - 1) / (0.1 * math.log(config.rope.factor)))
        values |= rope_to_hf(config)
        values["rope_scaling"] |= {"mscale": weight, "mscale_all_dim": weight}
    return values


# A function a family, by `model_type`.
FIELDS: dict[str, Callable[[DecoderConfig], dict[str, Any]]] = {
    "llama": _biases,
    "qwen2": _qwen,
    "qwen3": lambda config: {**_bias(config), **_qwen(config)},
    "qwen3_moe": _qwen3_moe,
    "mistral": _sliding,
    "ministral": _layer_types,
    "mixtral": lambda config: {**_sliding(config), **_experts(config, "num_local_experts")},
    "smollm3": _smollm3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "olmo2": _bias,
    "olmo3": _olmo3,
    "olmoe": lambda config: {**_bias(config), **_some_experts(config)},
    "phi3": lambda config: {**_sliding(config), "partial_rotary_factor": _partial(config)},
    "granite": _granite,
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "stablelm": _stablelm,
    "cohere": lambda config: {**_cohere(config), "use_qk_norm": config.qk_norm is not None},
    "cohere2": _cohere2,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek,
}
