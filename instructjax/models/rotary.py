"""Rotary position embedding and the ways families stretch it."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from instructjax.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    r"""Radians a position for each of head_dim / 2 planes, float32 [head_dim / 2].

    The default is \(\theta^{-2i/d}\) (Su et al. 2021). "linear" divides it by `factor`; "llama3"
    divides long wavelengths, keeps short ones and interpolates between (Llama 3.1 model card), as
    does "yarn" with another band (Peng et al. 2023); "longrope" divides each by a number of its
    own (Ding et al. 2024).

    >>> inverse_frequencies(RopeConfig(theta=100.0), 4).tolist()
    [1.0, 0.10000000149011612]
    """
    if rope.kind == "none":
        return np.zeros(head_dim // 2, np.float32)
    exponents = np.arange(0, head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(head_dim)
    inverse = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "longrope":
        return inverse / np.asarray(rope.divisors, np.float32)
    if rope.kind == "yarn":
        keep = _yarn_kept(rope, head_dim)
        return (inverse / np.float32(rope.factor) * (1 - keep) + inverse * keep).astype(np.float32)
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / inverse
        low = rope.original_max_positions / rope.low_freq_factor
        high = rope.original_max_positions / rope.high_freq_factor
        share = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        between = (1 - share) * inverse / rope.factor + share * inverse
        stretched = np.where(wavelength > low, inverse / rope.factor, inverse)
        return np.where((wavelength <= low) & (wavelength >= high), between, stretched).astype(
            np.float32
        )
    return inverse


def _yarn_kept(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """How much of each plane's frequency stays: 1 for those that turn often, 0 for the slow."""

    def plane(turns: float) -> float:
        wavelengths = rope.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wavelengths) / (2 * math.log(rope.theta))

    low, high = plane(rope.beta_fast), plane(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 * (low == high)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low)
    return 1 - np.clip(ramp, 0, 1).astype(np.float32)


def rotation(
    positions: Int[Array, " N"], inverse: np.ndarray, factor: float = 1.0
) -> tuple[Float[Array, "N 1 half"], Float[Array, "N 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads.

    Args:
      positions: depth of each token in its own sequence.
      inverse: radians a position.
      factor: both are multiplied by it.
    """
    angles = positions.astype(jnp.float32)[:, None, None] * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if factor == 1 else (factor * cos, factor * sin)


def rotate(
    x: Float[Array, "N heads D"], cos: Float[Array, "N 1 half"], sin: Float[Array, "N 1 half"]
) -> Float[Array, "N heads D"]:
    """Turn each plane (x[i], x[i + half]) by its angle; the products in float32.

    Features beyond the first 2 * half are left as they are.
    """
    turned = 2 * cos.shape[-1]
    if turned < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :turned], cos, sin), x[..., turned:]], axis=-1)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
