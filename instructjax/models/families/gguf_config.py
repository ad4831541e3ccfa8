"""Configurations from GGUF metadata: what the architectures besides Llama's have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax.models.config import DecoderConfig, RopeConfig
from instructjax.models.families.family import ConfigFromGguf
from instructjax.models.families.hf_config import check_config
from instructjax.models.families.options import Options
from instructjax.models.families.rope import float32_value, rope_from_gguf

Shapes = Mapping[str, tuple[int, ...]]
Fields = Callable[[Options, dict[str, Any], Shapes], dict[str, Any]]

# Everything else under the architecture's name is refused: a key that is added later may change
# the function.
_KNOWN = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.causal",
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


def reader(
    architecture: str, family: str, fields: Fields, reads: tuple[str, ...] = ()
) -> ConfigFromGguf:
    """A function that reads an architecture's metadata.

    Args:
      architecture: what keys begin with.
      family: the `model_type`.
      fields: what it adds to the fields that all have, or puts in their place.
      reads: further keys that it knows.
    """
    return partial(_read, architecture, family, fields, frozenset(reads))


def _read(
    architecture: str,
    family: str,
    fields: Fields,
    reads: frozenset[str],
    metadata: Mapping[str, Any],
    shapes: Shapes,
    rope_factors: Float[np.ndarray, " half"] | None,
    file: Path,
) -> DecoderConfig:
    options = Options(metadata, file, prefix=f"{architecture}.")
    options.check_names(_KNOWN | reads, arrays=("attention.sliding_window_pattern",))
    options.refuse({"attention.causal": (True,)})
    num_heads = options.integer("attention.head_count")
    hidden_size = options.integer("embedding_length")
    head_dim = options.integer("attention.key_length", hidden_size // num_heads)
    if "attention.key_length_mla" in reads:  # values have a width of their own
        head_dim = options.integer("attention.key_length_mla", head_dim)
    elif options.integer("attention.value_length", head_dim) != head_dim:
        raise options.error("attention.value_length", f"differs from the head width {head_dim}")
    turned = options.integer("rope.dimension_count", head_dim)
    rms = options.get("attention.layer_norm_epsilon") is None
    eps = "attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon"
    biased = "blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes
    base: dict[str, Any] = {
        "family": family,
        "vocab_size": options.integer("vocab_size", shapes.get("token_embd.weight", (1,))[0]),
        "hidden_size": hidden_size,
        "intermediate_size": options.integer("feed_forward_length"),
        "num_layers": options.num_layers("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": options.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "norm_eps": float32_value(options.number(eps)),
        "max_positions": options.integer("context_length"),
        "rotary_dim": None if turned == head_dim else turned,
        "rope": rope_from_gguf(
            options, default_theta=10_000.0, head_dim=turned, factors=rope_factors
        ),
        # GGUF has no flags for these: a tensor is there or it is not.
        "tie_embeddings": "output.weight" not in shapes,
        "attention_bias": biased,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }
    if ("blk.0.attn_output.bias" in shapes) != biased:
        base["output_bias"] = not biased
    return check_config(DecoderConfig(**{**base, **fields(options, base, shapes)}), file)


def read_number(options: Options, name: str, default: float | None = None) -> float:
    """A number as float32 holds it, which is how the file does."""
    value = options.number(name) if default is None else options.number(name, default)
    return float32_value(value)


def with_longrope(
    config: DecoderConfig,
    metadata: Mapping[str, Any],
    short: Float[np.ndarray, " half"],
    long: Float[np.ndarray, " half"],
    file: Path,
) -> DecoderConfig:
    """Phi-3's configuration with what its `rope_factors_short` and `rope_factors_long` say."""
    options = Options(metadata, file, prefix="phi3.rope.scaling.")
    rope = RopeConfig(
        theta=config.rope.theta,
        kind="longrope",
        original_max_positions=options.integer("original_context_length"),
        divisors=tuple(map(float32_value, short)),
        long_divisors=tuple(map(float32_value, long)),
        attention_factor=read_number(options, "attn_factor", 1.0),
    )
    layers = tuple(replace(kind, rope=rope) for kind in config.layers)
    return replace(config, rope=rope, layers=layers)
