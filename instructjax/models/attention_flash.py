"""Attention by a kernel, of TPUs or GPUs, as a differentiable function, on a mesh too.

Memory grows with the row, not with its square.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from instructjax.models import flash_gpu, flash_tpu
from instructjax.models.attention_split import UNSPLIT, AttentionSplit
from instructjax.models.attention_tiles import ATTENDED
from instructjax.models.flash_blocks import Marks, Options
from instructjax.models.varying import vary_alike

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
    split: AttentionSplit = UNSPLIT,
    platform: Platform = "tpu",
    interpret: Any = False,
) -> Float[Array, "N H V"]:
    """What `attention.attend_dense` gives, but for rounding; padding gives zeros.

    Args:
      q, k, v: N = B * T tokens, flat; where rows are split, the device's own, in pieces that are
        multiples of the kernel's blocks.
      ends, positions: who sees whom, and the depth of each token in its own sequence.
      window: a query sees keys less than so many tokens before it.
      sinks, scale, softcap: as for `attend_dense`.
      split: how heads and queries are split over devices.
      platform: whose kernel.
      interpret: run the kernel's operations one by one, on any device.
    """
    rows, length = len(ends), ends.shape[1] // split.parts
    q, k, v = (x.reshape(rows, length, *x.shape[1:]).swapaxes(1, 2) for x in (q, k, v))
    options = Options(
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        windowed=window is not None,
        interpret=interpret,
        platform=platform,
    )
    starts = split.spread(jnp.arange(ends.shape[1])[None])[:: split.piece(ends.shape[1])]
    width = jnp.full(1, 0 if window is None else window, jnp.int32)
    q_depth = split.spread(positions).reshape(rows, length)
    q, k, v, *marks = vary_alike(q, k, v, ends, positions, q_depth, starts, width)
    both: Any = _flash(q, k, v, Marks(*marks), options, split)
    out, log_norm = both
    if sinks is not None:  # one more term of the normalizer, without a value
        sinks = sinks.astype(jnp.float32)[:, None, None]
        out = (out * jax.nn.sigmoid(log_norm - sinks)).astype(q.dtype)
    return out.swapaxes(1, 2).reshape(rows * length, -1, v.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q, k, v, marks: Marks, options: Options, split: AttentionSplit):
    """([B, H, T, V], log-normalizers [B, H, T, 1]) of queries, keys and values by head."""
    return _flash_fwd(q, k, v, marks, options, split)[0]


def _specs(split: AttentionSplit) -> tuple[PartitionSpec, Marks]:
    """How arrays of queries and of keys, and the marks, are split."""
    whole: Any = PartitionSpec()
    return PartitionSpec(None, split.heads or None), Marks(whole, whole, whole, whole, whole)


def _flash_fwd(q, k, v, marks, options, split):
    by_head, of_marks = _specs(split)
    forward = _KERNELS[options.platform].forward

    def call(q, k, v, marks):
        return forward(q, split.gather(k), split.gather(v), marks, options=options)

    run = split.map_devices(call, (by_head,) * 3 + (of_marks,), by_head)
    out, norm = run(q, k, v, marks)
    out, norm = checkpoint_name(out, ATTENDED), checkpoint_name(norm, ATTENDED)
    return (out, norm), (q, k, v, marks, out, norm)


def _flash_bwd(options, split, saved, slopes):
    q, k, v, marks, out, norm = saved
    g, d_norm = slopes
    wide = g.astype(jnp.float32) * out.astype(jnp.float32)
    delta = wide.sum(-1, keepdims=True) - d_norm

    def call(q, k, v, *others):
        keys = split.gather(k), split.gather(v)
        dq, *d_keys = _KERNELS[options.platform].backward(q, *keys, *others, options=options)
        return dq, *map(split.scatter, d_keys)

    by_head, of_marks = _specs(split)
    run = split.map_devices(call, (by_head,) * 6 + (of_marks,), by_head)
    return *run(q, k, v, g, norm, delta, marks), None


_flash.defvjp(_flash_fwd, _flash_bwd)
