"""Mistral and Ministral, the dense models: Llama with sliding windows."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, sliding_layers, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options

# Left out, there is a window; null is none.
_DEFAULTS = {
    "max_position_embeddings": 4096 * 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def _mistral(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    has_window = options.get("sliding_window") is not None
    return {"layers": windowed(options, (has_window,) * base["num_layers"], base["rope"])}


def _ministral(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    has_window = options.get("sliding_window") is not None
    sliding = sliding_layers(options, base["num_layers"], lambda _: has_window)
    return {"layers": windowed(options, sliding, base["rope"])}


MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="mistral",
        fields=_mistral,
        reads=("sliding_window",),
        defaults=_DEFAULTS,
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)

MINISTRAL = Family(
    model_type="ministral",
    architectures=("MinistralForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="ministral",
        fields=_ministral,
        reads=("sliding_window", "layer_types"),
        defaults=_DEFAULTS,
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)
