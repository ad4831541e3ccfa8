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
    divides long wavelengths, keeps short ones and interpolates between (Llama 3.1 model card).

    >>> inverse_frequencies(RopeConfig(theta=100.0), 4).tolist()
    [1.0, 0.10000000149011612]
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(head_dim)
    inverse = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
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


def rotation(
    positions: Int[Array, " N"], inverse: np.ndarray
) -> tuple[Float[Array, "N 1 half"], Float[Array, "N 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads."""
    angles = positions.astype(jnp.float32)[:, None, None] * inverse
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "N heads D"], cos: Float[Array, "N 1 half"], sin: Float[Array, "N 1 half"]
) -> Float[Array, "N heads D"]:
    """Turn each plane (x[i], x[i + D/2]) by its angle; the products in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
