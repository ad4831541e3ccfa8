"""Granite 3 and 4, the dense models: Llama with multipliers."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": options.flag("attention_bias", False),
        "mlp_bias": options.flag("mlp_bias", False),
        "attention_scale": options.number("attention_multiplier", 1.0),
        "embedding_multiplier": options.number("embedding_multiplier", 1.0),
        "residual_multiplier": options.number("residual_multiplier", 1.0),
        "logit_multiplier": 1 / options.number("logits_scaling", 1.0),
    }


GRANITE = Family(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="granite",
        fields=_fields,
        reads=(
            "attention_bias",
            "mlp_bias",
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ),
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)
