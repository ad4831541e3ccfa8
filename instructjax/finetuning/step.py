"""One optimizer step as a pure function of (state, batch), compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from instructjax.finetuning.losses import sft_loss
from instructjax.finetuning.optimizers import Optimizer
from instructjax.finetuning.placement import place_state
from instructjax.finetuning.state import TrainState
from instructjax.models.spmd import Prepare, sum_over_rows, warn_of_short_rows
from instructjax.models.varying import vary, varying_axes
from instructjax.sharding.rules import ShardingRules

Loss = Callable[..., tuple[Float[Array, ""], Float[Array, ""]]]


class StepMetrics(NamedTuple):
    """What a step says of itself.

    Attributes:
      loss: the weighted mean over all micro-batches before the update, in nats a token.
      weight: total weight of the tokens.
      grad_norm: of the mean's gradient, before clipping.
      learning_rate: of this step.
      finite: loss and gradient were finite. A step that was not has changed nothing.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Bool[Array, ""]


def make_loss_and_grads(
    graphdef: nnx.GraphDef,
    *,
    loss: Loss = sft_loss,
    compute_dtype: str = "float32",
    remat: str = "none",
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Callable[[nnx.State, nnx.State, Any], tuple[Float[Array, ""], Float[Array, ""], nnx.State]]:
    """A pure function (trainable, frozen, batch) -> (sum, weight, gradient of the sum).

    Sums run over all micro-batches, if the batch has a leading axis of them. So sums of results,
    wherever they were computed, divided once by the sum of weights, are those of one big batch.

    Args:
      graphdef: the model.
      loss: (graphdef, params, batch, remat=) -> (weighted sum, weight).
      compute_dtype: what parameters are cast to for the forward and backward pass.
      remat: see `instructjax.models.decoder`.
      mesh, rules: rows are split over the mesh, and parameters that are split over the axes of rows
        are gathered layer by layer and their gradients scattered; see `instructjax.models.spmd`.
        The number of rows must divide by the product of these axes. Rows that are too short to be
        split over `context` are warned of.
    """
    dtype = jnp.dtype(compute_dtype)

    def cast(params: nnx.State) -> nnx.State:
        return jax.tree.map(lambda x: x.astype(dtype), params)

    def sums(prepare: Prepare, trainable, frozen, batch):
        frozen = cast(frozen)

        def one(batch):
            def total(trainable):
                params = nnx.merge_state(cast(trainable), frozen)
                return loss(*prepare(params, batch), remat=remat)

            (value, weight), grads = jax.value_and_grad(total, has_aux=True)(trainable)
            return value, weight, grads

        if not _has_micro_batches(batch):
            return one(batch)

        def add(sums, micro):
            return jax.tree.map(jnp.add, sums, one(micro)), None

        zero = jnp.zeros((), jnp.float32)
        start = zero, zero, jax.tree.map(jnp.zeros_like, trainable)
        # The sums vary over devices as what is trained does.
        axes = varying_axes(jax.tree.leaves(trainable)[0])
        return lax.scan(add, jax.tree.map(lambda x: vary(x, axes), start), batch)[0]

    def compute(trainable, frozen, batch):
        axis = int(_has_micro_batches(batch))
        warn_of_short_rows(batch.batch.tokens.shape[-1], batch.batch.tile, mesh, rules)
        total = sum_over_rows(sums, graphdef, mesh=mesh, rules=rules, batch_axis=axis)
        return total(trainable, frozen, batch)

    return compute


def _has_micro_batches(batch: Any) -> bool:
    return batch.batch.tokens.ndim == 3


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    *,
    loss: Loss = sft_loss,
    compute_dtype: str = "float32",
    remat: str = "none",
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """A jitted (state, batch) -> (state, metrics). The old state's memory becomes the new one's.

    Arguments as for `make_loss_and_grads`; the batch may carry a leading axis of micro-batches. On
    a mesh, the state lies as `place_state` puts it.
    """
    loss_and_grads = make_loss_and_grads(
        graphdef, loss=loss, compute_dtype=compute_dtype, remat=remat, mesh=mesh, rules=rules
    )

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        total, weight, grads = loss_and_grads(state.trainable, state.frozen, batch)
        grads = jax.tree.map(lambda g: g / weight, grads)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        mean = total / weight
        finite = jnp.isfinite(mean) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        new = TrainState(
            step=state.step + finite,
            trainable=keep(trainable, state.trainable),
            frozen=state.frozen,
            opt_state=keep(opt_state, state.opt_state),
        )
        if mesh is not None:
            # The new state lies as the old one did: its memory is taken over, and nothing compiled
            # again.
            new = place_state(new, mesh, rules, put=lax.with_sharding_constraint)
        rate = jnp.asarray(optimizer.schedule(state.step), jnp.float32)
        return new, StepMetrics(mean, weight, norm, rate, finite)

    return jax.jit(train_step, donate_argnums=0)
