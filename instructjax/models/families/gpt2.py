"""GPT-2: learned positions, LayerNorm, projections stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.models.config import NO_ROPE, DecoderConfig
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.hf_config import read_config
from instructjax.models.families.hf_tensors import hf_tensors
from instructjax.models.families.options import Options

# Its own names for what others call by the names on the right.
_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
}
_DEFAULTS = {
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "rope": NO_ROPE,
        "learned_positions": True,
        "norm": "layer",
        "norm_bias": True,
        "gated": False,
        "attention_bias": True,
        "mlp_bias": True,
        "attention_scale": None if options.flag("scale_attn_weights", True) else 1.0,
    }


def _read(values: Mapping[str, Any], file: Path) -> DecoderConfig:
    values = {_NAMES.get(name, name): value for name, value in values.items()}
    defaults = {_NAMES.get(name, name): value for name, value in _DEFAULTS.items()}
    width = values.get("hidden_size", defaults["hidden_size"])
    if values.get("intermediate_size") is None and isinstance(width, int):
        values["intermediate_size"] = 4 * width
    return read_config(
        values,
        file,
        family="gpt2",
        fields=_fields,
        reads=("rope", "scale_attn_weights"),
        defaults=defaults,
        eps="layer_norm_epsilon",
        activations=("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"),
    )


GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    config_from_hf=_read,
    tensors=(
        TensorRule(param="embed.positions", dims="PE", hf="transformer.wpe.weight"),
        *hf_tensors(
            embed="transformer.wte",
            final_norm="transformer.ln_f",
            layer="transformer.h.{layer}.",
            attention_norm="ln_1",
            mlp_norm="ln_2",
            q=("attn.c_attn", 0),
            k=("attn.c_attn", 1),
            v=("attn.c_attn", 2),
            o="attn.c_proj",
            up="mlp.c_fc",
            down="mlp.c_proj",
            transposed=True,
        ),
    ),
    harmless={"hf": (r".*attn\.(bias|masked_bias)",), "gguf": ()},
)
