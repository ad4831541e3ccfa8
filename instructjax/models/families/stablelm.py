"""StableLM: LayerNorm, partial rotary positions, norms of each head's queries and keys."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors, qk_norms
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    parallel = options.flag("use_parallel_residual", False)
    return {
        "norm": "layer",
        "norm_bias": True,
        "parallel": parallel,
        "shared_norm": parallel,
        "attention_bias": options.flag("use_qkv_bias", False),
        "output_bias": False,
        "qk_norm": "heads" if options.flag("qk_layernorm", False) else None,
    }


STABLELM = Family(
    model_type="stablelm",
    architectures=("StableLmForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="stablelm",
        fields=_fields,
        reads=(
            "use_parallel_residual",
            "use_qkv_bias",
            "qk_layernorm",
            "partial_rotary_factor",
        ),
        defaults={
            "max_position_embeddings": 4096,
            "num_key_value_heads": 32,
            "layer_norm_eps": 1e-5,
        },
        eps="layer_norm_eps",
        rotary=0.25,
    ),
    tensors=(
        *hf_tensors(),
        *qk_norms(
            ("D", "D"),
            names=(
                "self_attn.q_layernorm.norms.{each}.weight",
                "self_attn.k_layernorm.norms.{each}.weight",
            ),
            each=("H", "J"),
        ),
    ),
    harmless=HARMLESS,
)
