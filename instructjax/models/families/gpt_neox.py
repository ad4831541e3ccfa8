"""GPT-NeoX and Pythia: LayerNorm, parallel blocks, partial rotary positions."""

from __future__ import annotations

from typing import Any

from instructjax.models.families.family import Family
from instructjax.models.families.hf_config import read_config
from instructjax.models.families.hf_tensors import hf_tensors
from instructjax.models.families.options import Options


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_kv_heads": base["num_heads"],
        "norm": "layer",
        "norm_bias": True,
        "gated": False,
        "parallel": options.flag("use_parallel_residual", True),
        "attention_bias": options.flag("attention_bias", True),
        "mlp_bias": True,
    }


def _read(values, file):
    # the older name of the base
    base = values.get("rotary_emb_base")
    values = {"rope_theta": base, **values} if base is not None else values
    return read_config(
        values,
        file,
        family="gpt_neox",
        fields=_fields,
        reads=(
            "use_parallel_residual",
            "attention_bias",
            "partial_rotary_factor",
            "rotary_pct",
        ),
        defaults={"layer_norm_eps": 1e-5},
        eps="layer_norm_eps",
        activations=("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
        rotary=0.25,
    )


_FUSED = "attention.query_key_value"

GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    config_from_hf=_read,
    tensors=hf_tensors(
        embed="gpt_neox.embed_in",
        head="embed_out",
        final_norm="gpt_neox.final_layer_norm",
        layer="gpt_neox.layers.{layer}.",
        q=(_FUSED, 0),
        k=(_FUSED, 1),
        v=(_FUSED, 2),
        o="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        by_head=True,
    ),
    harmless={"hf": (r".*rotary_emb\.inv_freq", r".*attention\.(bias|masked_bias)"), "gguf": ()},
    renames=((r"^lm_head\.", "embed_out."),),
    tied_copy="embed_out.weight",
)
