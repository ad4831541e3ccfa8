"""What the metadata of a `deepseek2` GGUF file says of DeepSeek-V3 and R1."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from instructjax.models.config import LatentAttention, RopeConfig
from instructjax.models.families.gguf_config import Shapes, read_number
from instructjax.models.families.options import Options

# llama.cpp's number for sigmoids in the router; V2, which has none, has the softmax.
_SIGMOID = 2

READS = (
    "attention.kv_lora_rank",
    "attention.q_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "leading_dense_block_count",
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_feed_forward_length",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "rope.scaling.yarn_log_multiplier",
)


def deepseek(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Fields of the configuration beyond those of every architecture.

    Files from before llama.cpp split the matrix that expands keys and values have neither
    `key_length_mla` nor `value_length_mla`; `key_length` and `value_length` are then a head's.
    """
    if options.get("expert_gating_func") != _SIGMOID:
        raise options.error("expert_gating_func", f"is not supported, only {_SIGMOID} (sigmoid)")
    value_dim = options.integer("attention.value_length")
    rank = options.get("attention.q_lora_rank")
    dense = options.get("leading_dense_block_count", 0)
    if not isinstance(dense, int) or not 0 <= dense < base["num_layers"]:
        raise options.error("leading_dense_block_count", "must leave layers that have experts")
    count, wide = options.integer("expert_count"), options.integer("expert_feed_forward_length")
    # Files from before llama.cpp had groups do not name them; with 256 experts it is V3 or R1.
    groups, used = (8, 4) if count == 256 else (1, 1)
    rope, scale = _stretched(options, base["rope"])
    return {
        "num_kv_heads": base["num_heads"],
        "rotary_dim": None,
        "rope": rope,
        "attention_scale": base["head_dim"] ** -0.5 * scale,
        "latent": LatentAttention(
            rank=options.integer("attention.kv_lora_rank"),
            query_rank=0 if rank is None else options.integer("attention.q_lora_rank"),
            rotary_dim=options.integer("rope.dimension_count"),
            value_dim=options.integer("attention.value_length_mla", value_dim),
        ),
        "num_experts": count,
        "experts_per_token": options.integer("expert_used_count"),
        "normalize_experts": options.flag("expert_weights_norm", False),
        "router": "sigmoid",
        "router_groups": options.integer("expert_group_count", groups),
        "router_groups_used": options.integer("expert_group_used_count", used),
        "router_multiplier": read_number(options, "expert_weights_scale", 1.0),
        "intermediate_size": wide,
        "shared_size": wide * options.integer("expert_shared_count"),
        "dense_layers": dense,
        "dense_size": base["intermediate_size"],
    }


def _stretched(options: Options, rope: RopeConfig) -> tuple[RopeConfig, float]:
    """Rotary positions, and what scores are multiplied by besides.

    The file has 0.1 m of 0.1 m log(factor) + 1, whose square scores grow by. `mscale` is not in it;
    it equals m in the published models, so that cosines and sines keep their length.
    """
    if rope.kind != "yarn":
        return rope, 1.0
    tenth = read_number(options, "rope.scaling.yarn_log_multiplier")
    attention = read_number(options, "rope.scaling.yarn_attn_factor", 1.0)
    growth = (tenth * math.log(rope.factor) + 1) ** 2 if rope.factor > 1 else 1.0
    return replace(rope, attention_factor=attention), growth
