"""Attention by a kernel, of TPUs or GPUs, as a differentiable function, on a mesh too.

Memory grows with the row, not with its square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from instructjax.models import flash_gpu, flash_tpu
from instructjax.models.attention_tiles import ATTENDED
from instructjax.models.flash_blocks import Marks, Options
from instructjax.models.varying import WHOLE_HEADS, HeadSplit, vary_alike

Platform = Literal["tpu", "gpu"]
_KERNELS = {"tpu": flash_tpu, "gpu": flash_gpu}


def attend_flash(
    q: Float[Array, "N H D"],
    k: Float[Array, "N K D"],
    v: Float[Array, "N K V"],
    ends: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    window: Int[Array, ""] | None = None,
    sinks: Float[Array, " H"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    split: HeadSplit = WHOLE_HEADS,
    platform: Platform = "tpu",
    interpret: Any = False,
) -> Float[Array, "N H V"]:
    """What `attention.attend_dense` gives, but for rounding; padding gives zeros.

    Args:
      q, k, v: N = B * T tokens, flat; T is a multiple of 128.
      ends, positions: who sees whom, and the depth of each token in its own sequence.
      window: a query sees keys less than so many tokens before it.
      sinks, scale, softcap: as for `attend_dense`.
      split: how heads are split over devices.
      platform: whose kernel.
      interpret: run the kernel's operations one by one, on any device.
    """
    rows, length = ends.shape
    q, k, v = (x.reshape(rows, length, *x.shape[1:]).swapaxes(1, 2) for x in (q, k, v))
    options = Options(
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        windowed=window is not None,
        interpret=interpret,
        platform=platform,
    )
    width = jnp.full(split.parts, 0 if window is None else window, jnp.int32)
    q, k, v, ends, positions, width = vary_alike(q, k, v, ends, positions, width)
    marks = (Marks.of(x, split.parts) for x in (ends, positions))
    both: Any = _flash(q, k, v, *marks, width, options, split)
    out, log_norm = both
    if sinks is not None:  # one more term of the normalizer, without a value
        sinks = sinks.astype(jnp.float32)[:, None, None]
        out = (out * jax.nn.sigmoid(log_norm - sinks)).astype(q.dtype)
    return out.swapaxes(1, 2).reshape(rows * length, -1, v.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _flash(q, k, v, ends: Marks, depth: Marks, width, options: Options, split: HeadSplit):
    """([B, H, T, V], log-normalizers [B, H, T, 1]) of queries, keys and values by head."""
    return _flash_fwd(q, k, v, ends, depth, width, options, split)[0]


def _over_heads(call: Callable[..., Any], split: HeadSplit) -> Callable[..., Any]:
    """Each device calls it on its heads, since a compiler cannot split a kernel.

    Every argument has its part for each of them, so that nothing is computed within but the kernel:
    what a backward pass could keep of that is not for an inner shard_map to hand over.
    """
    if not split.auto:
        return call
    axes = split.axes or None
    heads = PartitionSpec(None, axes)

    def run(*arguments):
        specs = (heads,) * (len(arguments) - 1) + (PartitionSpec(axes),)
        options = {"in_specs": specs, "out_specs": heads, "axis_names": split.auto}
        return jax.shard_map(call, mesh=split.mesh, **options)(*arguments)

    return run


def _flash_fwd(q, k, v, ends, depth, width, options, split):
    run = _over_heads(partial(_KERNELS[options.platform].forward, options=options), split)
    out, norm = run(q, k, v, ends, depth, width)
    out, norm = checkpoint_name(out, ATTENDED), checkpoint_name(norm, ATTENDED)
    return (out, norm), (q, k, v, ends, depth, width, out, norm)


def _flash_bwd(options, split, saved, slopes):
    q, k, v, ends, depth, width, out, norm = saved
    g, d_norm = slopes
    wide = g.astype(jnp.float32) * out.astype(jnp.float32)
    delta = wide.sum(-1, keepdims=True) - d_norm
    run = _over_heads(partial(_KERNELS[options.platform].backward, options=options), split)
    return *run(q, k, v, g, norm, delta, ends, depth, width), None, None, None


_flash.defvjp(_flash_fwd, _flash_bwd)
