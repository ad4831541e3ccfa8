"""Phi-3, Phi-3.5 and Phi-4 (also mini): fused projections, LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    has_window = options.get("sliding_window") is not None
    return {"layers": windowed(options, (has_window,) * base["num_layers"], base["rope"])}


def _config_from_hf(values: Mapping[str, Any], file: Path) -> DecoderConfig:
    """LongRoPE had other names in the first files; no other scaling is known to transformers."""
    changed = dict(values)
    for name in ("rope_scaling", "rope_parameters"):
        rope = values.get(name)
        if not isinstance(rope, dict):
            continue
        key = "rope_type" if "rope_type" in rope else "type"
        if rope.get(key) in ("su", "yarn"):
            changed[name] = {**rope, key: "longrope"}
        elif rope.get(key) not in (None, "default", "longrope"):
            raise Options(rope, file).error(key, "is not supported, only 'longrope'")
    return read_config(
        changed,
        file,
        family="phi3",
        fields=_fields,
        reads=("sliding_window", "partial_rotary_factor"),
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    )


PHI3 = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    config_from_hf=_config_from_hf,
    tensors=hf_tensors(
        q=("self_attn.qkv_proj", 0),
        k=("self_attn.qkv_proj", 1),
        v=("self_attn.qkv_proj", 2),
        gate=("mlp.gate_up_proj", 0),
        up=("mlp.gate_up_proj", 1),
    ),
    harmless=HARMLESS,
)
