"""What the families of Hugging Face share: how a config.json is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructjax.errors import ModelError
from instructjax.models.config import DecoderConfig, LayerKind, RopeConfig
from instructjax.models.families.options import Options
from instructjax.models.families.quantization import read_quantization
from instructjax.models.families.rope import rope_from_hf

# Options that change the function computed, with the values under which a decoder without further
# parts is it. A family takes those off that it reads. What is not listed here is a matter of
# training, generation or bookkeeping.
_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "sliding_window": (),
    "use_sliding_window": (False,),
    "layer_types": (),
    "attention_chunk_size": (),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rotary_pct": (1, 1.0),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "attention_bias": (False,),
    "use_qkv_bias": (False,),
    "mlp_bias": (False,),
    "use_parallel_residual": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    # of families that are not here, and of code that comes with a model
    "dual_chunk_attention_config": (),
    "use_mrope": (False,),
    "attn_output_gate": (False,),
    "logit_softcap": (),
    "scale_emb": (1, 1.0),
    "compression_config": (),
}
# Of training, generation and bookkeeping, in most files.
_HARMLESS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map"),
    *("initializer_range", "attention_dropout", "use_cache", "pretraining_tp", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "quantization_config", "_name_or_path", "is_llama_config"),
    # written for every family, whether it reads them or not
    *("rms_norm_eps", "head_dim", "hidden_act", "num_key_value_heads", "rope_parameters"),
    *("rope_theta", "rope_scaling", "intermediate_size", "max_position_embeddings"),
    *("rotary_emb_base", "n_ctx"),  # older spellings, beside those that are read
    *("max_window_layers", "unsloth_version", "unsloth_fixed", "cache_implementation"),
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

Fields = Callable[[Options, dict[str, Any]], dict[str, Any]]


def read_config(
    values: Mapping[str, Any],
    file: Path,
    *,
    family: str,
    fields: Fields,
    reads: Collection[str] = (),
    defaults: Mapping[str, Any] = {},
    eps: str = "rms_norm_eps",
    theta: float = 10_000.0,
    activations: Collection[str] = ("silu", "swish"),
    rotary: float = 1.0,
) -> DecoderConfig:
    """The configuration of a decoder from a config.json.

    Args:
      values: what the file holds.
      file: that file, for messages.
      family: the `model_type`.
      fields: what the family adds to the fields that all have, or puts in their place; it is given
        the options and the fields read so far.
      reads: options that the family reads; others that change the function are refused.
      defaults: values of options that a file may leave out; null is a value.
      eps: the option of the norms' epsilon.
      theta: the base of rotary positions where the file has none.
      activations: those that the family is made with.
      rotary: the share of a head's features that is turned, where the file does not say.

    Raises:
      ModelError: an option is missing, wrong or not supported.
    """
    # An option that is null is not one that is left out: Gemma 2 without a cap writes null.
    options = Options(values, file, defaults=defaults)
    read_quantization(values, file)
    options.refuse({name: known for name, known in _SUPPORTED.items() if name not in reads})
    for name in ("hidden_act", "hidden_activation"):
        options.refuse({name: tuple(activations)})
    kinds = options.get("layer_types", [])
    if not isinstance(kinds, list):
        raise options.error("layer_types", "must be a list")
    if "layer_types" not in reads and any(kind != "full_attention" for kind in kinds):
        raise options.error("layer_types", "is not supported, only 'full_attention'")
    num_heads = options.integer("num_attention_heads")
    hidden_size = options.integer("hidden_size")
    max_positions = options.integer("max_position_embeddings", 2048)
    if options.get("head_dim") is None and hidden_size % num_heads:
        raise options.error("hidden_size", f"is not a multiple of the {num_heads} heads")
    head_dim = options.integer("head_dim", hidden_size // num_heads)
    act = options.get("hidden_activation", options.get("hidden_act", next(iter(activations))))
    rotary_dim = _rotary_dim(options, reads, head_dim, rotary)
    base: dict[str, Any] = {
        "family": family,
        "vocab_size": options.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": options.integer("intermediate_size"),
        "num_layers": options.num_layers("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": options.integer("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "norm_eps": options.number(eps, 1e-6),
        "max_positions": max_positions,
        "tie_embeddings": options.flag("tie_word_embeddings", False),
        "activation": _ACTIVATIONS[act],
        "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
    }
    if "rope" not in reads:
        base["rope"] = rope_from_hf(
            options,
            default_theta=theta,
            max_positions=max_positions,
            rotary_dim=rotary_dim,
            partial="partial_rotary_factor" in reads,
        )
    config = DecoderConfig(**{**base, **fields(options, base)})
    _warn_of_unknown(values, options, family)
    return check_config(_beyond_context(config), file)


def _warn_of_unknown(values: Mapping[str, Any], options: Options, family: str) -> None:
    """Say which options nobody knows: neither this reader nor transformers' own configuration."""
    left = {n for n, v in values.items() if v is not None} - options.asked - _HARMLESS
    if not left - _SUPPORTED.keys():
        return
    from transformers import AutoConfig  # here, for it takes a second

    theirs = AutoConfig.for_model(family)
    left -= {*theirs.to_dict(), *theirs.attribute_map, *_SUPPORTED}
    if left:
        warnings.warn(
            f"{options.file}: {', '.join(f'`{name}`' for name in sorted(left))}: passed over, as "
            f"transformers does for model_type {family!r}",
            stacklevel=2,
        )


def _rotary_dim(options: Options, reads: Collection[str], head_dim: int, default: float) -> int:
    if "partial_rotary_factor" not in reads:
        return head_dim
    rope = options.get("rope_parameters") or options.get("rope_scaling") or {}
    inner = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    outer = [name for name in ("partial_rotary_factor", "rotary_pct") if options.get(name)]
    factor = options.number(outer[0]) if outer else default
    if inner is not None:
        factor = Options(rope, options.file).number("partial_rotary_factor")
    dim = int(head_dim * factor)
    if not 0 < dim <= head_dim or dim % 2:
        raise options.error("partial_rotary_factor", f"turns {dim} of {head_dim} features")
    return dim


def _beyond_context(config: DecoderConfig) -> DecoderConfig:
    """Dynamic scaling is there for sequences longer than the configuration's context."""
    if config.rope.kind != "dynamic":
        return config
    longest = int(config.max_positions * config.rope.factor)
    return replace(config, max_positions=longest)


def check_config(config: DecoderConfig, file: Path) -> DecoderConfig:
    """The configuration as it is, if its heads fit together.

    Raises:
      ModelError: heads do not divide over key-value heads, or a head's width is odd.
    """
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"{config.num_heads} heads do not divide over {config.num_kv_heads} key-value heads",
            file=file,
        )
    if config.head_dim % 2:
        raise ModelError(
            f"head width {config.head_dim} is odd: rotary pairs need it even", file=file
        )
    return config


def sliding_layers(
    options: Options, num_layers: int, default: Callable[[int], bool]
) -> tuple[bool, ...]:
    """Which layers have a window: `layer_types`, or the family's rule where that is absent."""
    kinds = options.get("layer_types")
    if kinds is None:
        return tuple(default(i) for i in range(num_layers))
    known = {"full_attention": False, "sliding_attention": True}
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not all(isinstance(kind, str) and kind in known for kind in kinds)
    ):
        raise options.error("layer_types", f"must name {' or '.join(known)} for each layer")
    return tuple(known[kind] for kind in kinds)


def windowed(
    options: Options,
    sliding: tuple[bool, ...],
    full: RopeConfig,
    local: RopeConfig | None = None,
) -> tuple[LayerKind, ...]:
    """The kind of each layer: those that slide have the window and, if given, `local` rotary."""
    if not any(sliding) and (local is None or local == full):
        return ()
    window = options.integer("sliding_window") if any(sliding) else None
    far = LayerKind(rope=full)
    near = LayerKind(window=window, rope=local or full)
    return tuple(near if slides else far for slides in sliding)


def experts(options: Options, count: str, normalize: bool) -> dict[str, Any]:
    """The fields of a mixture of experts; `count` is the option with their number."""
    number, chosen = options.integer(count), options.integer("num_experts_per_tok")
    if chosen > number:
        raise options.error("num_experts_per_tok", f"is more than the {number} experts")
    return {
        "num_experts": number,
        "experts_per_token": chosen,
        "normalize_experts": normalize,
    }
