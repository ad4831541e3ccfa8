"""Gemma 1 and 2, and the text models of Gemma 3."""

from __future__ import annotations

from functools import partial
from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config, sliding_layers, windowed
from instructjax.models.families.hf_tensors import HARMLESS, hf_tensors, qk_norms
from instructjax.models.families.options import Options
from instructjax.models.families.rope import rope_from_hf

_TANH = ("gelu_pytorch_tanh", "gelu_new")
_DEFAULTS = {"max_position_embeddings": 8192, "head_dim": 256, "tie_word_embeddings": True}
_SECOND = {
    **_DEFAULTS,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_READS = ("attention_bias",)
_READS_SECOND = (
    *_READS,
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_SECOND_TENSORS = hf_tensors(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)


def _gemma(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "norm": "rms1p",
        "embedding_multiplier": base["hidden_size"] ** 0.5,
        "attention_bias": options.flag("attention_bias", False),
        "activation": "gelu_tanh",  # "gelu" in older files, which meant this
    }


def _second(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    def cap(name: str) -> float | None:
        return None if options.get(name) is None else options.number(name)

    return {
        **_gemma(options, base),
        "post_norm": True,
        "attention_scale": options.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": cap("attn_logit_softcapping"),
        "logit_softcap": cap("final_logit_softcapping"),
    }


def _gemma2(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    sliding = sliding_layers(options, base["num_layers"], lambda i: i % 2 == 0)
    return {**_second(options, base), "layers": windowed(options, sliding, base["rope"])}


def _gemma3(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    every = options.integer("sliding_window_pattern", 6)
    sliding = sliding_layers(options, base["num_layers"], lambda i: (i + 1) % every != 0)
    positions = base["max_positions"]
    full = rope_from_hf(
        options, default_theta=1e6, max_positions=positions, layer_type="full_attention"
    )
    # The older spelling of the second base stands beside the first; only the first is stretched.
    nested = options.get("rope_parameters") or {}
    inner = {"rope_parameters": nested if "sliding_attention" in nested else {}}
    local = rope_from_hf(
        Options(inner, options.file),
        default_theta=options.number("rope_local_base_freq", 10_000.0),
        max_positions=positions,
        layer_type="sliding_attention",
    )
    return {
        **_second(options, base),
        "qk_norm": "head",
        "rope": full,
        "layers": windowed(options, sliding, full, local),
    }


GEMMA = Family(
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="gemma",
        fields=_gemma,
        reads=_READS,
        defaults={**_DEFAULTS, "num_key_value_heads": 16},
        activations=(*_TANH, "gelu"),
    ),
    tensors=hf_tensors(),
    harmless=HARMLESS,
)

GEMMA2 = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="gemma2",
        fields=_gemma2,
        reads=_READS_SECOND,
        defaults={**_SECOND, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        activations=_TANH,
    ),
    tensors=_SECOND_TENSORS,
    harmless=HARMLESS,
)

GEMMA3 = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    config_from_hf=partial(
        read_config,
        family="gemma3_text",
        fields=_gemma3,
        # transformers passes a cap of its attention over, so which is meant is not known
        reads=(*(n for n in _READS_SECOND if n != "attn_logit_softcapping"), "rope"),
        defaults={**_SECOND, "max_position_embeddings": 131072},
        activations=_TANH,
    ),
    tensors=(*_SECOND_TENSORS, *qk_norms(("D", "D"))),
    harmless=HARMLESS,
)
