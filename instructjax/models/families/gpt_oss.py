"""GPT-OSS: experts with biases and clamped gates, attention sinks, windows in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.hf_config import experts, read_config, sliding_layers, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options

_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_LAYER = "model.layers.{layer}."


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    sliding = sliding_layers(options, base["num_layers"], lambda i: i % 2 == 0)
    return {
        "layers": windowed(options, sliding, base["rope"]),
        "attention_bias": options.flag("attention_bias", True),
        "sinks": True,
        "expert_bias": True,
        "swiglu_limit": options.number("swiglu_limit", 7.0),
        "swiglu_alpha": options.number("swiglu_alpha", 1.702),
        **experts(options, "num_local_experts", normalize=True),
    }


def _config_from_hf(values: Mapping[str, Any], file: Path) -> DecoderConfig:
    if values.get("rope_parameters") is None and values.get("rope_scaling") is None:
        values = {**values, "rope_scaling": _ROPE}
    return read_config(
        values,
        file,
        family="gpt_oss",
        fields=_fields,
        reads=("attention_bias", "sliding_window", "layer_types", "num_local_experts"),
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
        theta=150_000.0,
    )


def _gate_up(name: str, index: int) -> tuple[TensorRule, TensorRule]:
    """Gate and up take turns in what is stored, unit by unit."""
    stored = _LAYER + "mlp.experts.gate_up_proj"
    return (
        TensorRule(
            param=f"layers.mlp.{name}",
            dims="XEF",
            hf=stored,
            fused="FF",
            fused_axis=2,
            in_turns=True,
            index=index,
        ),
        TensorRule(
            param=f"layers.mlp.{name}_bias",
            dims="XF",
            hf=f"{stored}_bias",
            fused="FF",
            fused_axis=1,
            in_turns=True,
            index=index,
        ),
    )


GPT_OSS = Family(
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    config_from_hf=_config_from_hf,
    tensors=(
        *hf_tensors(),
        TensorRule(param="layers.attention.sinks", dims="H", hf=_LAYER + "self_attn.sinks"),
        TensorRule(
            param="layers.mlp.router.kernel",
            dims="XE",
            hf=_LAYER + "mlp.router.weight",
            transpose=True,
        ),
        TensorRule(param="layers.mlp.router.bias", dims="X", hf=_LAYER + "mlp.router.bias"),
        *_gate_up("gate", 0),
        *_gate_up("up", 1),
        TensorRule(param="layers.mlp.down", dims="XFE", hf=_LAYER + "mlp.experts.down_proj"),
        TensorRule(
            param="layers.mlp.down_bias", dims="XE", hf=_LAYER + "mlp.experts.down_proj_bias"
        ),
    ),
    harmless=HARMLESS,
)
