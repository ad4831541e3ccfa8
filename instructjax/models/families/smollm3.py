"""SmolLM3: Llama in which every fourth layer has no positions."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.config import NO_ROPE, LayerKind
from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, sliding_layers
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    count, interval = base["num_layers"], options.integer("no_rope_layer_interval", 4)
    turns = options.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(count)]
    if not isinstance(turns, list) or len(turns) != count or not all(t in (0, 1) for t in turns):
        raise options.error("no_rope_layers", "must be 0 or 1 for each layer")
    slides = options.flag("use_sliding_window", False) and options.get("sliding_window") is not None
    sliding = sliding_layers(options, count, lambda i: slides and not turns[i])
    window = options.integer("sliding_window") if slides else None
    return {
        "layers": tuple(
            LayerKind(
                rope=base["rope"] if turns[i] else NO_ROPE, window=window if sliding[i] else None
            )
            for i in range(count)
        ),
        "attention_bias": options.flag("attention_bias", False),
        "mlp_bias": options.flag("mlp_bias", False),
    }


SMOLLM3 = Family(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="smollm3",
        fields=_fields,
        reads=(
            "sliding_window",
            "use_sliding_window",
            "layer_types",
            "no_rope_layers",
            "no_rope_layer_interval",
            "attention_bias",
            "mlp_bias",
        ),
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
        theta=2_000_000.0,
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)
