"""OLMo 2 and 3 (norms after attention and the MLP) and OLMoE; all norm whole queries and keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import experts, read_config, sliding_layers, windowed
from instructjax.models.families.hf_tensors import (
    EXPERT_STACKS,
    HARMLESS,
    expert_tensors,
    hf_tensors,
    qk_norms,
)
from instructjax.models.families.options import Options
from instructjax.models.families.rope import rope_from_hf

_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
_TENSORS = (
    *hf_tensors(
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    *qk_norms(("Q", "K")),
)


def _olmo2(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": "all",
        "attention_bias": options.flag("attention_bias", False),
    }


def _olmo3(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    sliding = sliding_layers(options, base["num_layers"], lambda i: (i + 1) % 4 != 0)
    positions = base["max_positions"]
    read = partial(rope_from_hf, default_theta=500_000.0, max_positions=positions)
    full = read(options, layer_type="full_attention")
    # In the older spelling, only the layers that see everything are stretched.
    nested = options.get("rope_parameters") or {}
    inner = {"rope_theta": options.get("rope_theta")}
    inner |= {"rope_parameters": nested} if "sliding_attention" in nested else {}
    local = read(Options(inner, options.file), layer_type="sliding_attention")
    layers = windowed(options, sliding, full, local)
    return {**_olmo2(options, base), "rope": full, "layers": layers}


def _olmoe(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "qk_norm": "all",
        "attention_bias": options.flag("attention_bias", False),
        **experts(options, "num_experts", options.flag("norm_topk_prob", False)),
    }


OLMO2 = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    config_from_hf=partial(
        read_config, family="olmo2", fields=_olmo2, reads=("attention_bias",), defaults=_DEFAULTS
    ),
    tensors=_TENSORS,
    harmless=HARMLESS,
)

OLMO3 = Family(
    model_type="olmo3",
    architectures=("Olmo3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="olmo3",
        fields=_olmo3,
        reads=("attention_bias", "sliding_window", "layer_types", "rope"),
        defaults={**_DEFAULTS, "sliding_window": 4096},
    ),
    tensors=_TENSORS,
    harmless=HARMLESS,
)

OLMOE = Family(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="olmoe",
        fields=_olmoe,
        reads=("attention_bias", "num_experts"),
        defaults={
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "num_experts": 64,
            "num_experts_per_tok": 8,
        },
    ),
    tensors=(
        *hf_tensors(),
        *qk_norms(("Q", "K")),
        *expert_tensors(),
    ),
    harmless=HARMLESS,
    stacks=EXPERT_STACKS,
)
