"""Qwen2, Qwen2.5 and Qwen3, dense and with experts."""

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

_DEFAULTS = {"max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 4096}
_DEFAULTS |= {"num_key_value_heads": 32}
_READS = ("sliding_window", "use_sliding_window", "layer_types")


def _layers(options: Options, base: dict[str, Any]):
    if not options.flag("use_sliding_window", False):
        return ()
    first = options.get("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise options.error("max_window_layers", "must be a whole number")
    sliding = sliding_layers(options, base["num_layers"], lambda i: i >= first)
    return windowed(options, sliding, base["rope"])


def _qwen2(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    layers = _layers(options, base)
    return {"attention_bias": True, "output_bias": False, "layers": layers}


def _qwen3(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    bias = options.flag("attention_bias", False)
    return {"attention_bias": bias, "qk_norm": "head", "layers": _layers(options, base)}


def _qwen3_moe(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    options.refuse({"mlp_only_layers": ([],), "decoder_sparse_step": (1,)})
    if options.flag("use_sliding_window", False):
        has_window = (options.get("sliding_window") is not None,) * base["num_layers"]
        layers = windowed(options, has_window, base["rope"])
    else:
        layers = ()
    # transformers 5 writes the second name, older files have the first
    count = "num_experts" if options.get("num_local_experts") is None else "num_local_experts"
    options.refuse({"num_experts": (options.get(count),)})
    return {
        "attention_bias": options.flag("attention_bias", False),
        "qk_norm": "head",
        "layers": layers,
        "intermediate_size": options.integer("moe_intermediate_size", 768),
        **experts(options, count, options.flag("norm_topk_prob", False)),
    }


QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    config_from_hf=partial(
        read_config, family="qwen2", fields=_qwen2, reads=_READS, defaults=_DEFAULTS
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)

QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="qwen3",
        fields=_qwen3,
        reads=(*_READS, "attention_bias"),
        defaults={**_DEFAULTS, "head_dim": 128},
    ),
    tensors=(*hf_tensors(), *qk_norms(("D", "D"))),
    harmless=HARMLESS,
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="qwen3_moe",
        fields=_qwen3_moe,
        reads=(
            "attention_bias",
            "sliding_window",
            "use_sliding_window",
            "num_experts",
            "num_local_experts",
        ),
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "intermediate_size": 6144,
            "sliding_window": 4096,
            "num_experts_per_tok": 8,
        },
    ),
    tensors=(
        *hf_tensors(),
        *qk_norms(("D", "D")),
        *expert_tensors(),
    ),
    harmless=HARMLESS,
    stacks=EXPERT_STACKS,
)
