"""The Llama family: Llama 1 to 3.3, SmolLM and SmolLM2, TinyLlama and others of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.hf_config import check_config, read_config
from instructjax.models.families.options import Options
from instructjax.models.families.rope import float32_value, rope_from_gguf

_HEADER_GGUF: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}

# Everything else under "llama." is refused: a key that is added later may change the function.
_KNOWN_GGUF = {
    *_HEADER_GGUF,
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "expert_used_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
}


def _fields(options: Options, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": options.flag("attention_bias", False),
        "mlp_bias": options.flag("mlp_bias", False),
    }


def _config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Float[np.ndarray, " half"] | None,
    file: Path,
) -> DecoderConfig:
    options = Options(metadata, file, prefix="llama.")
    options.check_names(_KNOWN_GGUF)
    options.refuse(_HEADER_GGUF)
    num_heads = options.integer("attention.head_count")
    hidden_size = options.integer("embedding_length")
    head_dim = options.integer("attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if options.integer(key, head_dim) != head_dim:
            raise options.error(key, f"differs from the head width {head_dim}")
    embedding = shapes.get("token_embd.weight", (1,))
    return check_config(
        DecoderConfig(
            family="llama",
            vocab_size=options.integer("vocab_size", embedding[0]),
            hidden_size=hidden_size,
            intermediate_size=options.integer("feed_forward_length"),
            num_layers=options.num_layers("block_count"),
            num_heads=num_heads,
            num_kv_heads=options.integer("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            norm_eps=float32_value(options.number("attention.layer_norm_rms_epsilon")),
            max_positions=options.integer("context_length"),
            rope=rope_from_gguf(
                options, default_theta=10_000.0, head_dim=head_dim, factors=rope_factors
            ),
            # GGUF has no flags for these: a tensor is there or it is not.
            tie_embeddings="output.weight" not in shapes,
            attention_bias="blk.0.attn_q.bias" in shapes,
            mlp_bias="blk.0.ffn_gate.bias" in shapes,
        ),
        file,
    )


def _block(
    param: str, dims: str, hf: str, gguf: str, *, bias: str, rotary: Any = None
) -> tuple[TensorRule, TensorRule]:
    """The kernel of a projection in every layer, and its bias where the configuration has them."""
    hf, gguf = f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}"
    return (
        TensorRule(
            param=f"layers.{param}.kernel",
            dims=dims,
            hf=f"{hf}.weight",
            gguf=f"{gguf}.weight",
            transpose=True,
            rotary_heads=rotary,
        ),
        TensorRule(
            param=f"layers.{param}.bias",
            dims=dims[0],
            hf=f"{hf}.bias",
            gguf=f"{gguf}.bias",
            rotary_heads=rotary,
            when=lambda config: getattr(config, bias),
        ),
    )


def _norm(param: str, hf: str, gguf: str) -> TensorRule:
    hf, gguf = f"model.layers.{{layer}}.{hf}.weight", f"blk.{{layer}}.{gguf}.weight"
    return TensorRule(param=f"layers.{param}.scale", dims="E", hf=hf, gguf=gguf)


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_architecture="llama",
    config_from_hf=partial(
        read_config, family="llama", fields=_fields, reads=("attention_bias", "mlp_bias")
    ),
    config_from_gguf=_config_from_gguf,
    tensors=(
        TensorRule(
            param="embed.embedding",
            dims="VE",
            hf="model.embed_tokens.weight",
            gguf="token_embd.weight",
        ),
        TensorRule(
            param="lm_head.kernel",
            dims="VE",
            hf="lm_head.weight",
            gguf="output.weight",
            when=lambda config: not config.tie_embeddings,
        ),
        TensorRule(
            param="final_norm.scale", dims="E", hf="model.norm.weight", gguf="output_norm.weight"
        ),
        _norm("attention_norm", "input_layernorm", "attn_norm"),
        *_block(
            "attention.q", "QE", "self_attn.q_proj", "attn_q", bias="attention_bias", rotary="query"
        ),
        *_block(
            "attention.k", "KE", "self_attn.k_proj", "attn_k", bias="attention_bias", rotary="key"
        ),
        *_block("attention.v", "KE", "self_attn.v_proj", "attn_v", bias="attention_bias"),
        *_block("attention.o", "EQ", "self_attn.o_proj", "attn_output", bias="attention_bias"),
        _norm("mlp_norm", "post_attention_layernorm", "ffn_norm"),
        *_block("mlp.gate", "FE", "mlp.gate_proj", "ffn_gate", bias="mlp_bias"),
        *_block("mlp.up", "FE", "mlp.up_proj", "ffn_up", bias="mlp_bias"),
        *_block("mlp.down", "EF", "mlp.down_proj", "ffn_down", bias="mlp_bias"),
    ),
    harmless={
        "hf": (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        # read beforehand, for the configuration
        "gguf": (r"rope_freqs\.weight",),
    },
)
