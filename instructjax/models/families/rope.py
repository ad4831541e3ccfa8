"""Rotary positions as Hugging Face configurations and GGUF files spell them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax.errors import ModelError
from instructjax.models.config import RopeConfig
from instructjax.models.families.options import Options

_KNOWN = {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "short_factor",
    "long_factor",
}
# What each kind reads; an option of another kind is refused, for nobody says what it would do.
_SHARED = {"rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings"}
_SHARED |= {"partial_rotary_factor"}
_READ: dict[str, set[str]] = {
    "default": _KNOWN,  # all of them without effect
    "linear": _SHARED,
    "dynamic": _SHARED,
    "llama3": _SHARED | {"low_freq_factor", "high_freq_factor"},
    "yarn": _SHARED
    | {"beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"},
    "longrope": _SHARED | {"short_factor", "long_factor", "attention_factor"},
}


def rope_from_hf(
    options: Options,
    *,
    default_theta: float,
    max_positions: int,
    rotary_dim: int | None = None,
    layer_type: str | None = None,
    partial: bool = False,
) -> RopeConfig:
    """Read `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    Args:
      options: the whole configuration.
      default_theta: the family's base where the file gives none.
      max_positions: the model's longest sequence in tokens.
      rotary_dim: how many features of a head are turned, where a kind has one number a plane.
      layer_type: where `rope_parameters` has one object a type of layer, the one to read.
      partial: `partial_rotary_factor` is read elsewhere; else it must be 1.

    Raises:
      ModelError: a kind of scaling that is not supported, or two spellings that disagree.
    """
    new, old = options.get("rope_parameters", {}), options.get("rope_scaling", {})
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise options.error("rope_parameters" if old == {} else "rope_scaling", "must be an object")
    if layer_type is not None and isinstance(new.get(layer_type), dict):
        new = new[layer_type]
    if new and old and {**new, **old} != new:
        raise options.error("rope_scaling", "contradicts `rope_parameters`")
    given = {name: value for name, value in (new or old).items() if value is not None}
    if any(isinstance(value, dict) for value in given.values()):
        raise options.error("rope_parameters", "differs between layers, which is not supported")
    rope = Options(given, options.file)
    if unknown := sorted(set(given) - _KNOWN):
        raise rope.error(unknown[0], "is an option of rotary positions that is not supported")
    if not partial:
        rope.refuse({"partial_rotary_factor": (1, 1.0)})

    theta = options.number("rope_theta", default_theta)
    if rope.get("rope_theta") is not None:
        theta = rope.number("rope_theta")
        if options.get("rope_theta") not in (None, theta):
            raise options.error("rope_theta", "contradicts `rope_parameters`")
    key = "rope_type" if "rope_type" in given else "type"
    kind = rope.get(key, "default")
    if not isinstance(kind, str) or kind not in _READ:
        raise rope.error(key, f"is not supported, only {', '.join(map(repr, _READ))}")
    if strange := sorted(set(given) - _READ[kind]):
        raise rope.error(strange[0], f"is no option of rotary positions of type {kind!r}")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=rope.number("factor"))
    if kind == "dynamic":
        factor = rope.number("factor")
        if factor < 1:
            raise rope.error("factor", "is below 1")
        return RopeConfig(
            theta=theta, kind="dynamic", factor=factor, original_max_positions=max_positions
        )
    pretrained = options.get("original_max_position_embeddings")
    original = (
        rope.integer("original_max_position_embeddings", max_positions)
        if pretrained is None
        else options.integer("original_max_position_embeddings")
    )
    if kind == "llama3":
        if rope.number("low_freq_factor") >= rope.number("high_freq_factor"):
            raise rope.error("low_freq_factor", "is not below `high_freq_factor`")
        return RopeConfig(
            theta=theta,
            kind="llama3",
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_positions=original,
        )
    factor = rope.number("factor", max_positions / original)
    if kind == "yarn":
        return RopeConfig(
            theta=theta,
            kind="yarn",
            factor=factor,
            original_max_positions=original,
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            truncate=Options(new or old, options.file).flag("truncate", True),
            attention_factor=rope.number("attention_factor", _yarn_attention(rope, factor)),
        )
    if original == 1:
        at = rope if pretrained is None else options
        raise at.error("original_max_position_embeddings", "is too few for type 'longrope'")
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeConfig(
        theta=theta,
        kind="longrope",
        original_max_positions=original,
        divisors=_numbers(rope, "short_factor", rotary_dim),
        long_divisors=_numbers(rope, "long_factor", rotary_dim),
        attention_factor=rope.number("attention_factor", attention),
    )


def _yarn_attention(rope: Options, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope.number("mscale")) / mscale(rope.number("mscale_all_dim"))
    return mscale(1.0)


def _numbers(rope: Options, name: str, rotary_dim: int | None) -> tuple[float, ...]:
    values = rope.get(name)
    if not isinstance(values, list):
        raise rope.error(name, "must be a list of numbers")
    if rotary_dim is not None and len(values) != rotary_dim // 2:
        raise rope.error(name, f"must have {rotary_dim // 2} numbers")
    return tuple(Options({name: value}, rope.file).number(name) for value in values)


def rope_from_gguf(
    options: Options,
    *,
    default_theta: float,
    head_dim: int,
    factors: Float[np.ndarray, " half"] | None,
) -> RopeConfig:
    """Read the `rope.*` keys of GGUF metadata and the factors of `rope_freqs.weight`.

    GGUF keeps no name for Llama 3's scaling, only the divisor of every frequency. The one set of
    constants in use (band 1 to 4, 8192 positions, any factor) is recognized; others are refused.
    """
    theta = float32_value(options.number("rope.freq_base", default_theta))
    kind = options.get("rope.scaling.type", "none")
    factor = options.get("rope.scaling.factor", options.get("rope.scale_linear", 1.0))
    if kind == "none" and factor != 1.0 and options.get("rope.scaling.type") is None:
        kind = "linear"
    if kind not in ("none", "linear", "yarn"):
        known = "'none', 'linear' and 'yarn'"
        raise options.error("rope.scaling.type", f"is not supported, only {known}")
    if kind == "yarn":
        return _yarn_from_gguf(options, theta)
    if factors is not None and not np.all(factors == 1):
        if kind == "linear" and factor != 1.0:
            raise options.error("rope.scaling.type", "together with `rope_freqs.weight`")
        return _recognize_llama3(factors, theta, head_dim, options)
    if kind == "linear" and factor != 1.0:
        if isinstance(factor, bool) or not isinstance(factor, float | int) or not factor > 0:
            raise options.error("rope.scaling.factor", "must be a positive number")
        return RopeConfig(theta=theta, kind="linear", factor=float32_value(factor))
    return RopeConfig(theta=theta)


def _yarn_from_gguf(options: Options, theta: float) -> RopeConfig:
    def number(name: str, default: float) -> float:
        return float32_value(options.number(f"rope.scaling.{name}", default))

    factor = float32_value(options.number("rope.scaling.factor"))
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_positions=options.integer("rope.scaling.original_context_length"),
        beta_fast=number("yarn_beta_fast", 32.0),
        beta_slow=number("yarn_beta_slow", 1.0),
        attention_factor=number("yarn_attn_factor", _yarn_attention(options, factor)),
    )


def llama3_divisors(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, " half"]:
    """By what Llama 3's scaling divides each of the `head_dim / 2` frequencies.

    Frequencies whose wavelength is below `original / high` are kept, those above
    `original / low` are divided by `factor`, those between are interpolated.

    >>> rope = RopeConfig(theta=500000.0, kind="llama3", factor=8.0)
    >>> llama3_divisors(rope, 8).round(3).tolist()
    [1.0, 1.0, 2.695, 8.0]
    """
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope.original_max_positions * frequencies / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return 1 / ((1 - smooth) / rope.factor + smooth)


def float32_value(value: Any) -> float:
    """The shortest decimal that a float32 of a file stands for.

    >>> float32_value(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(value)))


def _recognize_llama3(
    factors: Float[np.ndarray, " half"], theta: float, head_dim: int, options: Options
) -> RopeConfig:
    if factors.shape == (head_dim // 2,) and np.isfinite(factors).all() and factors.max() > 1:
        factor = float32_value(factors.max())
        rope = RopeConfig(theta=theta, kind="llama3", factor=factor, original_max_positions=8192)
        if np.allclose(llama3_divisors(rope, head_dim), factors, rtol=1e-4, atol=0):
            return rope
    raise ModelError(
        "`rope_freqs.weight` is not the scaling of Llama 3",
        file=options.file,
        remedy="load the model from its Hugging Face folder",
    )
