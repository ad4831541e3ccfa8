"""Phi-3, Phi-3.5 and Phi-4 (also mini): fused projections, LongRoPE."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    has_window = options.get("sliding_window") is not None
    return {"layers": windowed(options, (has_window,) * base["num_layers"], base["rope"])}


PHI3 = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="phi3",
        fields=_fields,
        reads=("sliding_window", "partial_rotary_factor"),
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    ),
    tensors=hf_tensors(
        q=("self_attn.qkv_proj", 0),
        k=("self_attn.qkv_proj", 1),
        v=("self_attn.qkv_proj", 2),
        gate=("mlp.gate_up_proj", 0),
        up=("mlp.gate_up_proj", 1),
    ),
    harmless=HARMLESS,
)
