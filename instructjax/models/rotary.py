"""Rotary position embedding and the ways families stretch it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from instructjax.models.config import DecoderConfig, RopeConfig


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


def sequence_lengths(positions: Int[Array, "B T"], ends: Int[Array, "B T"]) -> Int[Array, " N"]:
    """Tokens of the longest sequence that begins where each token's sequence does; 0 for padding.

    Args:
      positions: depth of each token in its own sequence.
      ends: who sees whom; see `attention`.

    >>> positions, ends = jnp.array([[0, 1, 2, 0, 1, 0]]), jnp.array([[3, 3, 3, 5, 5, 0]])
    >>> sequence_lengths(positions, ends).tolist()
    [3, 3, 3, 2, 2, 0]
    """
    used = ends > jnp.arange(ends.shape[1])
    sequence = jnp.maximum(jnp.cumsum(used & (positions == 0), axis=1) - 1, 0)
    longest = jax.vmap(partial(jax.ops.segment_max, num_segments=ends.shape[1]))
    length = longest(jnp.where(used, positions + 1, 0), sequence)
    own = jnp.take_along_axis(length, sequence, axis=1)
    return jnp.where(used, own, 0).reshape(-1)


def frequencies_by_length(
    rope: RopeConfig, head_dim: int, lengths: Int[Array, " N"]
) -> Float[Array, "N half"]:
    r"""Radians a position for tokens of requests of these lengths, float32.

    Beyond the original context of M tokens, "dynamic" raises the base for a request of L tokens to
    \(\theta (sL/M - s + 1)^{d/(d-2)}\) (NTK-aware scaling, as transformers has it), and "longrope"
    takes its second list of divisors.
    """
    within = inverse_frequencies(rope, head_dim)
    if rope.kind == "longrope":
        beyond = inverse_frequencies(replace(rope, divisors=rope.long_divisors), head_dim)
    else:
        stretch = rope.factor * lengths.astype(jnp.float32) / rope.original_max_positions
        stretch = jnp.maximum(stretch - (rope.factor - 1), 1.0)
        base = rope.theta * stretch ** (head_dim / (head_dim - 2))
        beyond = 1.0 / base[:, None] ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return jnp.where((lengths > rope.original_max_positions)[:, None], beyond, within)


def by_length(rope: RopeConfig) -> bool:
    """Whether frequencies depend on how long a request is."""
    return rope.kind in ("dynamic", "longrope")


def length_classes(config: DecoderConfig) -> Callable[[int], Hashable] | None:
    """What of a request's length its frequencies depend on; None where they do not.

    Requests of different classes may share no prefix: its keys would be turned otherwise.

    Returns:
      A function from the number of tokens computed to the class.
    """
    ropes = [config.rope, *(kind.rope for kind in config.layers)]
    ropes = [rope for rope in dict.fromkeys(ropes) if by_length(rope)]

    def classify(length: int) -> Hashable:
        return tuple(
            length > rope.original_max_positions
            if rope.kind == "longrope"
            else max(length, rope.original_max_positions)
            for rope in ropes
        )

    return classify if ropes else None


def rotation(
    positions: Int[Array, " N"],
    inverse: np.ndarray | Float[Array, "N half"],
    factor: float = 1.0,
) -> tuple[Float[Array, "N 1 half"], Float[Array, "N 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads.

    Args:
      positions: depth of each token in its own sequence.
      inverse: radians a position, [half] for all or [N, half].
      factor: both are multiplied by it.
    """
    inverse = inverse if inverse.ndim == 1 else inverse[:, None]
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
