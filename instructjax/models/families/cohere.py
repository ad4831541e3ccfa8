"""Cohere's Command-R and Command-R7B (Cohere 2), Aya: LayerNorm without bias, parallel blocks.

Rotary pairs lie side by side in the files; they are put in halves, as everywhere else here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.config import NO_ROPE
from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, sliding_layers, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors, qk_norms
from instructjax.models.families.options import Options

_DEFAULTS = {
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}
_READS = ("attention_bias", "logit_scale")


def _cohere(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "norm": "layer",
        "parallel": True,
        "shared_norm": True,
        "attention_bias": options.flag("attention_bias", False),
        "logit_multiplier": options.number("logit_scale"),
        "qk_norm": "heads" if options.flag("use_qk_norm", False) else None,
    }


def _cohere2(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    every = options.integer("sliding_window_pattern", 4)
    sliding = sliding_layers(options, base["num_layers"], lambda i: (i + 1) % every != 0)
    # Layers that see everything have no positions.
    layers = windowed(options, sliding, NO_ROPE, base["rope"])
    return {**_cohere(options, base), "layers": layers}


COHERE = Family(
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="cohere",
        fields=_cohere,
        reads=(*_READS, "use_qk_norm"),
        defaults=_DEFAULTS,
        eps="layer_norm_eps",
        theta=500_000.0,
    ),
    tensors=(*hf_tensors(interleaved=True), *qk_norms(("HD", "JD"), interleaved=True)),
    harmless=HARMLESS,
)

COHERE2 = Family(
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="cohere2",
        fields=_cohere2,
        reads=(*_READS, "sliding_window", "layer_types"),
        defaults={**_DEFAULTS, "sliding_window": 4096},
        eps="layer_norm_eps",
    ),
    tensors=hf_tensors(interleaved=True),
    harmless=HARMLESS,
)
