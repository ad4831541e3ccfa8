"""Projections whose matmul precision is stated, not inherited from the platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


def precision_of(dtype: jnp.dtype) -> lax.Precision:
    """Matmul precision for operands of `dtype`: float32 products are never rounded to bfloat16.

    >>> precision_of(jnp.dtype("float32")).name, precision_of(jnp.dtype("bfloat16")).name
    ('HIGHEST', 'DEFAULT')
    """
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def matmul(
    x: Float[Array, "*rows inner"], kernel: Float[Array, "inner outer"]
) -> Float[Array, "*rows outer"]:
    """x @ kernel at the precision of x's dtype, in x's dtype."""
    return jnp.matmul(x, kernel, precision=precision_of(x.dtype))


class Linear(nnx.Module):
    """y = x W (+ b), W stored [in, out]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((in_features, out_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None

    def __call__(self, x: Float[Array, "N inner"]) -> Float[Array, "N outer"]:
        y = matmul(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, the mean square in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, *shape: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * normed.astype(x.dtype)


class OnePlusRMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), all in float32 (Gemma)."""

    def __init__(self, *shape: int, eps: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.zeros(shape, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * scale (+ b), all in float32 (Ba et al. 2016)."""

    def __init__(self, *shape: int, eps: float, bias: bool, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape, dtype)) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(jnp.float32)
        y = y if self.bias is None else y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
