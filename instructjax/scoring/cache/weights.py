"""A digest of weights as they are in memory, taken where they are."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Shaped, UInt32

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_STRIDES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


def digest_weights(params: nnx.State) -> str:
    """SHA-256, in hexadecimal, over names, shapes and 64 bits mixed from every array.

    A model's fingerprint is that of the files it came from; this also tells apart weights that
    were changed since. It guards against accidents, not against forgery.

    >>> a = nnx.State({"w": nnx.Param(jnp.array([1.0, 2.0]))})
    >>> b = nnx.State({"w": nnx.Param(jnp.array([2.0, 1.0]))})
    >>> digest_weights(a) == digest_weights(a), digest_weights(a) == digest_weights(b)
    (True, False)
    """
    leaves = jax.tree.leaves_with_path(nnx.to_pure_dict(params))
    sums = jax.device_get([_mix(leaf) for _, leaf in leaves])
    lines = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape} {mixed.tolist()}"
        for (path, leaf), mixed in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@jax.jit
def _mix(leaf: Shaped[Array, " ..."]) -> UInt32[Array, " two"]:
    """Two sums over the elements, each of which is first mixed with its place (murmur3)."""
    bits = lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    for axis in range(leaf.ndim):
        place = lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) + jnp.uint32(1)
        bits = bits + place * jnp.uint32(_STRIDES[axis % len(_STRIDES)])
    return jnp.stack([_scramble(bits ^ jnp.uint32(seed)).sum() for seed in (0, 0x5BD1E995)])


def _scramble(x: UInt32[Array, " ..."]) -> UInt32[Array, " ..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
