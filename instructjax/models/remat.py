"""What the backward pass keeps of the forward pass, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from instructjax.errors import UsageError

_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_POLICIES)


def rematerialize(step: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A layer whose backward pass computes again what is not kept.

    Args:
      step: the body of the scan over layers.
      name: "none" keeps everything; "layer" keeps the input of each layer; "dots" keeps what the
        projections give, so that only norms, activations and attention are computed again.

    Raises:
      UsageError: no such name.
    """
    if name == "none":
        return step
    if name not in _POLICIES:
        raise UsageError(f"unknown remat {name!r}", remedy=f"one of {', '.join(REMAT)}")
    return jax.checkpoint(step, policy=_POLICIES[name], prevent_cse=False)
