"""Mixtral: Mistral with experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import experts, read_config, windowed
from instructjax.models.families.hf_tensors import HARMLESS, expert_tensors, hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    has_window = options.get("sliding_window") is not None
    return {
        "layers": windowed(options, (has_window,) * base["num_layers"], base["rope"]),
        **experts(options, "num_local_experts", normalize=True),
    }


MIXTRAL = Family(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="mixtral",
        fields=_fields,
        reads=("sliding_window", "num_local_experts"),
        defaults={
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        theta=1e6,
    ),
    tensors=(
        *hf_tensors(),
        *expert_tensors(
            router="block_sparse_moe.gate.weight",
            gate="block_sparse_moe.experts.{each}.w1.weight",
            up="block_sparse_moe.experts.{each}.w3.weight",
            down="block_sparse_moe.experts.{each}.w2.weight",
        ),
    ),
    harmless=HARMLESS,
    # as transformers 5 calls and stacks them, where it does not write them as they were
    renames=((r"^(model\.layers\.\d+)\.mlp\.", r"\1.block_sparse_moe."),),
    stacks={
        "block_sparse_moe.experts.gate_up_proj": (
            "block_sparse_moe.experts.{each}.w1.weight",
            "block_sparse_moe.experts.{each}.w3.weight",
        ),
        "block_sparse_moe.experts.down_proj": ("block_sparse_moe.experts.{each}.w2.weight",),
    },
)
