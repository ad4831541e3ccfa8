"""What a training run changes from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Int

from instructjax.batching.batch import Values
from instructjax.finetuning.optimizers import Optimizer
from instructjax.finetuning.partition import split_params


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a step reads and writes; a checkpoint of it is a checkpoint of the run.

    Attributes:
      step: optimizer steps done.
      trainable: parameters that are trained, in float32.
      frozen: parameters that are not.
      opt_state: of the optimizer, for `trainable`.
    """

    step: Int[Values, ""]
    trainable: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState

    @property
    def params(self) -> nnx.State:
        """All parameters, as the model's pure functions take them."""
        return nnx.merge_state(self.trainable, self.frozen)


def make_state(
    params: nnx.State,
    optimizer: Optimizer,
    *,
    trainable: Sequence[str] = ("*",),
    frozen_dtype: str | None = None,
) -> TrainState:
    """The state before the first step. Trained parameters become float32; nothing is shared with
    `params`, so the step may take the state's memory over.

    Args:
      params: of the model.
      optimizer: what will update them.
      trainable: patterns of the names of those that are trained; `LORA` for LoRA's.
      frozen_dtype: what the others are kept in, such as "bfloat16"; as they are by default.
    """
    chosen, frozen = split_params(params, trainable)
    chosen = jax.tree.map(lambda x: jnp.array(x, jnp.float32), chosen)
    frozen = jax.tree.map(lambda x: jnp.array(x, frozen_dtype or x.dtype), frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=chosen,
        frozen=frozen,
        opt_state=optimizer.init(chosen),
    )
