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
# The name of parameters gathered from other devices: where all else is kept, these are gathered
# again, since all layers' together are the whole model.
GATHERED = "gathered"


def rematerialize(
    step: Callable[..., Any], name: str, *, gathers: bool = False
) -> Callable[..., Any]:
    """A layer whose backward pass computes again what is not kept.

    Args:
      step: the body of the scan over layers.
      name: "none" keeps everything; "layer" keeps the input of each layer; "dots" keeps what
        projections and attention give, so that only norms, rotations and activations are
        computed again: on CPU it is the fastest, since it writes the least.
      gathers: it gathers its parameters from other devices.

    Raises:
      UsageError: no such name.
    """
    if name == "none" and not gathers:
        return step
    if name == "none":
        policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
        return jax.checkpoint(step, policy=policy, prevent_cse=False)
    if name not in _POLICIES:
        raise UsageError(f"unknown remat {name!r}", remedy=f"one of {', '.join(REMAT)}")
    return jax.checkpoint(step, policy=_POLICIES[name], prevent_cse=False)
