"""What the backward pass keeps of the forward pass, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from instructjax.errors import UsageError
from instructjax.models.attention_tiles import ATTENDED

_POLICIES = {
    "layer": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENDED),
    ),
}
REMAT = ("none", *_POLICIES)


def rematerialize(step: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A layer whose backward pass computes again what is not kept.

    Args:
      step: the body of the scan over layers.
      name: "none" keeps everything; "layer" keeps the input of each layer; "dots" keeps what
        projections and attention give, so that only norms, rotations and activations are
        computed again: on CPU it is the fastest, since it writes the least.

    Raises:
      UsageError: no such name.
    """
    if name == "none":
        return step
    if name not in _POLICIES:
        raise UsageError(f"unknown remat {name!r}", remedy=f"one of {', '.join(REMAT)}")
    return jax.checkpoint(step, policy=_POLICIES[name], prevent_cse=False)
