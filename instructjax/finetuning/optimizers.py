"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from instructjax.errors import UsageError
from instructjax.finetuning.partition import matches, name_param
from instructjax.models.sharded import is_stacked

Schedule = Literal["constant", "linear", "cosine", "wsd"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
      name: "adamw", "adafactor", "lion", "muon" (matrices of the layers by Muon, everything else by
        AdamW), or another optimizer of optax by its name there, if gradients and parameters are all
        that it needs.
      learning_rate: the highest of the run.
      schedule: after warm-up, "constant"; "linear" or "cosine" down to the final share; or "wsd",
        constant until the last `decay_share` of steps, then linear down.
      warmup_steps: steps in which the rate rises from 0, in a straight line.
      final_share: of the learning rate, what is left of it at the end.
      decay_share: of all steps, those in which "wsd" decays.
      clip_norm: gradients longer than this are shortened to it; None for never.
      weight_decay: each step takes learning rate times this share off the decayed parameters.
      no_decay: patterns of the names of parameters that do not decay.
      beta1, beta2, epsilon: of the optimizer; None for its own defaults.
    """

    name: str = "adamw"
    learning_rate: float = 2e-5
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    final_share: float = 0.0
    decay_share: float = 0.2
    clip_norm: float | None = 1.0
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = (
        "*norm*",
        "*.bias",
        "*_bias",
        "embed.*",
        "lm_head.*",
        "*.sinks",
        "*.router.correction",
    )
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None


class Optimizer(NamedTuple):
    """An optax transformation that knows its learning rate.

    Attributes:
      init, update: those of `optax.GradientTransformation`.
      schedule: the learning rate of a step, counted from 0.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    schedule: Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[Any], Any]:
    """The learning rate of each step, counted from 0, in a run of `num_steps`.

    >>> config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule="linear")
    >>> [round(float(make_schedule(config, 6)(step)), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    peak, end = config.learning_rate, config.learning_rate * config.final_share
    after = max(num_steps - config.warmup_steps, 1)
    if config.schedule == "linear":
        main = optax.linear_schedule(peak, end, after)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after, config.final_share)
    elif config.schedule == "wsd":
        decay = min(max(round(num_steps * config.decay_share), 1), after)
        main = optax.linear_schedule(peak, end, decay, transition_begin=after - decay)
    elif config.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        raise UsageError(
            f"unknown schedule {config.schedule!r}", remedy="constant, linear, cosine or wsd"
        )
    if not config.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> Optimizer:
    """The transformation that a configuration describes, for a run of `num_steps`.

    Raises:
      UsageError: optax has no optimizer or schedule of that name, or it has no such option.
    """
    schedule = make_schedule(config, num_steps)
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(_find_optimizer(config, schedule))
    if config.weight_decay:
        parts.append(_decay(config, schedule))
    chain = optax.chain(*parts)
    return Optimizer(chain.init, chain.update, schedule)


def _find_optimizer(config: OptimizerConfig, schedule) -> optax.GradientTransformation:
    make: Any = getattr(optax, config.name, None) or getattr(optax.contrib, config.name, None)
    parameters = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in parameters:
        raise UsageError(
            f"optax has no optimizer called {config.name!r}",
            remedy="adamw, adafactor, lion, muon, sgd, ...",
        )

    if config.name.startswith("schedule_free"):
        raise _not_usable(config.name, "what it evaluates is not what it trains")
    options: dict[str, Any] = {"learning_rate": schedule}
    wanted = {
        ("b1", "adam_b1"): config.beta1,
        ("b2", "adam_b2"): config.beta2,
        ("eps",): config.epsilon,
    }
    for names, value in wanted.items():
        found = [name for name in names if name in parameters]
        if value is not None and not found:
            raise UsageError(f"{config.name} has no {names[0]}", remedy="leave it unset")
        options |= {name: value for name in found if value is not None}
    if "weight_decay" in parameters:
        options["weight_decay"] = 0.0  # see `_decay`; theirs is not zero by default
    if config.name == "muon":
        options["muon_weight_dimension_numbers"] = _find_matrices
    try:
        made: Any = make(**options)
        trial = {"embed": jnp.zeros((2, 2))}
        jax.eval_shape(lambda x: made.update(x, made.init(x), x), trial)
    except (TypeError, ValueError, KeyError) as error:
        raise _not_usable(config.name, "it needs more than gradients and parameters") from error
    return _layer_by_layer(made) if config.name == "adafactor" else made


def _not_usable(name: str, reason: str) -> UsageError:
    return UsageError(
        f"the optimizer {name} cannot be used here: {reason}",
        remedy="adamw, adafactor, lion, muon, sgd, ...",
    )


def _decay(config: OptimizerConfig, schedule) -> optax.GradientTransformation:
    """Takes learning rate times `weight_decay` off parameters, whatever made the update.

    Decoupled as in AdamW (Loshchilov & Hutter 2019), which optax's optimizers do each in its way:
    Adafactor's does not heed the learning rate, others know no mask.
    """

    def init(params):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state: Any, params=None):
        share = schedule(state.count) * config.weight_decay

        def one(path, step, param):
            decays = not matches(name_param(path), config.no_decay)
            return step - share * param if decays else step

        made = jax.tree.map_with_path(one, updates, params)
        return made, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _find_matrices(params: Any) -> Any:
    """What Muon makes orthogonal: the matrices of each layer, not embedding, head or norms."""

    def find(path, leaf):
        name = name_param(path)
        is_matrix = is_stacked(name) and not matches(name, ("*norm*", "*.bias", "*_bias"))
        if not (is_matrix and leaf.ndim >= 3):
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree.map_with_path(find, params)


def _layer_by_layer(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies to each layer's slice of a stacked parameter as if it were a parameter of its own."""

    def init(params):
        return (
            jax.vmap(transform.init)(params) if jax.tree.leaves(params) else transform.init(params)
        )

    def update(updates, state, params=None):
        if not jax.tree.leaves(updates):
            return transform.update(updates, state, params)
        return jax.vmap(transform.update)(updates, state, params)

    def label(params):
        return jax.tree.map_with_path(
            lambda path, _: "stacked" if is_stacked(name_param(path)) else "single", params
        )

    stacked = optax.GradientTransformation(init, update)
    return optax.partition({"stacked": stacked, "single": transform}, label)
