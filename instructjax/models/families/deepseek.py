"""DeepSeek-V3 and R1: latent attention, experts in groups after a few dense layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from instructjax.models.config import DecoderConfig, LatentAttention
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.hf_config import experts, read_config
from instructjax.models.families.hf_tensors import EXPERT_STACKS, HARMLESS, expert_tensors
from instructjax.models.families.options import Options

_LAYER = "model.layers.{layer}."


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    options.refuse(
        {"moe_layer_freq": (1,), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}
    )
    if base["num_kv_heads"] != base["num_heads"]:
        raise options.error("num_key_value_heads", "differs from `num_attention_heads`")
    turned = options.integer("qk_rope_head_dim", 64)
    head_dim = options.integer("qk_nope_head_dim", 128) + turned
    rank = options.get("q_lora_rank")
    dense = options.get("first_k_dense_replace", 3)
    if isinstance(dense, bool) or not isinstance(dense, int) or not 0 <= dense < base["num_layers"]:
        raise options.error("first_k_dense_replace", "must leave layers that have experts")
    groups, used = options.integer("n_group", 8), options.integer("topk_group", 4)
    mixture = experts(options, "n_routed_experts", options.flag("norm_topk_prob", True))
    size, rest = divmod(mixture["num_experts"], groups)
    if rest or size < 2 or used > groups or used * size < mixture["experts_per_token"]:
        raise options.error("n_group", "does not fit the number of experts")
    wide = options.integer("moe_intermediate_size", 2048)
    return {
        **mixture,
        "head_dim": head_dim,
        "attention_bias": options.flag("attention_bias", False),
        "attention_scale": head_dim**-0.5 * _scale(options),
        "latent": LatentAttention(
            rank=options.integer("kv_lora_rank", 512),
            query_rank=0 if rank is None else options.integer("q_lora_rank"),
            rotary_dim=turned,
            value_dim=options.integer("v_head_dim", 128),
            interleaved=options.flag("rope_interleave", True),
        ),
        "router": "sigmoid",
        "router_groups": groups,
        "router_groups_used": used,
        "router_multiplier": options.number("routed_scaling_factor", 2.5),
        "intermediate_size": wide,
        "shared_size": wide * options.integer("n_shared_experts", 1),
        "dense_layers": dense,
        "dense_size": base["intermediate_size"],
    }


def _scale(options: Options) -> float:
    """Scores grow with the stretch of YaRN, which its attention factor leaves to them."""
    rope = options.get("rope_parameters") or options.get("rope_scaling") or {}
    inner = Options(rope, options.file)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default" or not inner.get("mscale_all_dim"):
        return 1.0
    factor, weight = inner.number("factor"), inner.number("mscale_all_dim")
    return (0.1 * weight * math.log(factor) + 1) ** 2 if factor > 1 else 1.0


Has = Callable[[DecoderConfig], bool]


def _linear(param: str, dims: str, hf: str, when: Has, biased: bool = False):
    kernel = TensorRule(
        param=f"{param}.kernel", dims=dims, hf=f"{hf}.weight", transpose=True, when=when
    )
    if not biased:
        return (kernel,)
    return kernel, TensorRule(
        param=f"{param}.bias",
        dims=dims[0],
        hf=f"{hf}.bias",
        when=lambda config: config.attention_bias and when(config),
    )


def _layers(stack: str, when: Has) -> tuple[TensorRule, ...]:
    """What layers with and without experts have alike."""

    def has_rank(config: DecoderConfig) -> bool:
        return config.latent is not None and config.latent.query_rank > 0 and when(config)

    def has_none(config: DecoderConfig) -> bool:
        return when(config) and not has_rank(config)

    def norm(param: str, dims: str, hf: str, when: Has = when) -> TensorRule:
        return TensorRule(
            param=f"{stack}.{param}.scale", dims=dims, hf=f"{_LAYER}{hf}.weight", when=when
        )

    linear, inner = partial(_linear, when=when), f"{stack}.attention."
    attention = _LAYER + "self_attn."
    return (
        norm("attention_norm", "E", "input_layernorm"),
        norm("mlp_norm", "E", "post_attention_layernorm"),
        *_linear(inner + "q", "QE", attention + "q_proj", has_none),
        *_linear(inner + "q_down", "AE", attention + "q_a_proj", has_rank, biased=True),
        norm("attention.q_norm", "A", "self_attn.q_a_layernorm", has_rank),
        *_linear(inner + "q_up", "QA", attention + "q_b_proj", has_rank),
        *linear(inner + "kv_down", "CE", attention + "kv_a_proj_with_mqa", biased=True),
        norm("attention.kv_norm", "R", "self_attn.kv_a_layernorm"),
        *linear(inner + "kv_up", "UR", attention + "kv_b_proj"),
        *linear(inner + "o", "EO", attention + "o_proj", biased=True),
    )


def _mlp(param: str, width: str, hf: str, when: Has) -> tuple[TensorRule, ...]:
    return tuple(
        rule
        for name, dims in (("gate", width + "E"), ("up", width + "E"), ("down", "E" + width))
        for rule in _linear(f"{param}.{name}", dims, f"{_LAYER}{hf}.{name}_proj", when)
    )


def _always(_: DecoderConfig) -> bool:
    return True


def _has_dense(config: DecoderConfig) -> bool:
    return config.dense_layers > 0


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="deepseek_v3",
        fields=_fields,
        reads=("attention_bias", "n_routed_experts", "num_local_experts"),
        defaults={"max_position_embeddings": 4096, "head_dim": 64, "n_routed_experts": 256}
        | {"num_experts_per_tok": 8, "q_lora_rank": 1536},
    ),
    tensors=(
        TensorRule(param="embed.embedding", dims="VE", hf="model.embed_tokens.weight"),
        TensorRule(
            param="lm_head.kernel",
            dims="VE",
            hf="lm_head.weight",
            when=lambda config: not config.tie_embeddings,
        ),
        TensorRule(param="final_norm.scale", dims="E", hf="model.norm.weight"),
        *_layers("dense_layers", _has_dense),
        *_mlp("dense_layers.mlp", "W", "mlp", _has_dense),
        *_layers("layers", _always),
        *expert_tensors(),
        *_mlp("layers.mlp.shared", "S", "mlp.shared_experts", _always),
        TensorRule(
            param="layers.mlp.router.correction",
            dims="X",
            hf=_LAYER + "mlp.gate.e_score_correction_bias",
            in_float32=True,
        ),
    ),
    # The layer that predicts a second token; its number is that of the published models.
    harmless={**HARMLESS, "hf": (*HARMLESS["hf"], r"model\.layers\.61\..*")},
    stacks=EXPERT_STACKS,
)
