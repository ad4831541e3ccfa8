"""From a configuration to everything that a run needs, before its first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from instructjax.data import RejectsFile
from instructjax.errors import DataError, UsageError
from instructjax.finetuning.batches import Batches
from instructjax.finetuning.config import FinetuneConfig, check_warmup
from instructjax.finetuning.evaluation import HeldOut, make_evaluator
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.placement import place_state
from instructjax.finetuning.sequences import (
    NothingUsable,
    Sequences,
    join_sequences,
    read_sequences,
)
from instructjax.finetuning.state import TrainState, make_state
from instructjax.finetuning.step import StepMetrics, make_train_step
from instructjax.models import Model, load_model
from instructjax.models.lora import LORA, LoraConfig, add_lora
from instructjax.models.rotary import length_classes
from instructjax.prompts import PromptEncoder
from instructjax.scoring.api import make_encoder
from instructjax.sharding.processes import leads


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run that may begin.

    Attributes:
      model: as it was loaded.
      graphdef: of what is trained: with LoRA's matrices, if there are any.
      batches: of training.
      steps: how many there will be.
      init: makes the state before the first step.
      train_step: see `make_train_step`.
      evaluate: a state's held-out log-probabilities; None without held-out data.
      rejected: one line about rows that cannot be used; "" if all can.
      num_sequences, num_response_tokens: of the training data.
    """

    model: Model
    graphdef: nnx.GraphDef
    batches: Batches
    steps: int
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
    evaluate: Callable[[TrainState], HeldOut] | None
    rejected: str
    num_sequences: int
    num_response_tokens: int


def load_for_training(
    config: FinetuneConfig, mesh: Mesh | None = None
) -> tuple[Model, PromptEncoder]:
    """The model, and the encoder of its prompts.

    Raises:
      InstructJaxError: there is no such model, or it cannot be used so.
    """
    # Parameters that learn are kept in float32; those of a frozen base need not be.
    dtype = config.dtype if config.train == "lora" else "float32"
    model = load_model(config.model, dtype=dtype, mesh=mesh)
    encoder = make_encoder(
        model,
        layout=config.layout,
        include_eos=config.include_eos,
        boundary=config.boundary,
        turns=config.turns,
        truncation="error" if config.truncation == "reject" else config.truncation,
        max_length=min(config.row_length + 1, model.config.max_positions),
    )
    return model, encoder


def prepare(config: FinetuneConfig, model: Model, encoder: PromptEncoder) -> Prepared:
    """Reads the data and makes what the loop calls. Nothing is compiled yet.

    Raises:
      InstructJaxError: the data or an option cannot be used.
    """
    train, counts, held_out, rejected = _read(config, encoder)
    epochs = config.epochs if config.steps is None else None
    if config.share_prefixes and not _read_alike(model, [train.sizes]):
        raise UsageError(
            "the model reads a prefix otherwise in long sequences than in short ones",
            remedy="leave out share_prefixes",
        )
    batches = Batches(train, counts, config, epochs=epochs, mesh=model.mesh, rules=model.rules)
    steps = config.steps or batches.total
    assert steps is not None  # either is given
    check_warmup(config, steps)
    graphdef, init = make_trainable(config, model, steps)
    evaluate = _make_evaluate(config, graphdef, held_out, model) if held_out else None
    return Prepared(
        model=model,
        graphdef=graphdef,
        batches=batches,
        steps=steps,
        init=init,
        train_step=make_train_step(
            graphdef,
            make_optimizer(describe_optimizer(config), steps),
            compute_dtype=config.dtype,
            remat=config.remat,
            mesh=model.mesh,
            rules=model.rules,
        ),
        evaluate=evaluate,
        rejected=rejected,
        num_sequences=len(train),
        num_response_tokens=train.num_response_tokens,
    )


def settle_rows(config: FinetuneConfig, model: Model, earlier: int | None = None) -> FinetuneConfig:
    """The configuration with the rows of a micro-batch, so many that they divide over the mesh.

    Args:
      config: with or without rows.
      model: on the mesh.
      earlier: rows of the run that may go on here, perhaps on another mesh.

    Raises:
      UsageError: those given do not divide.
    """
    together, mesh = model.rows_together, model.mesh
    if config.rows is None:
        divide = earlier is not None and earlier % together == 0
        rows = earlier if divide else math.ceil(config.rows_or_default / together) * together
        return dataclasses.replace(config, rows=rows)
    if mesh is not None and config.rows % together:
        axes = ",".join(
            f"{axis}={mesh.shape[axis]}" for axis in model.rules.mesh_axes("batch", mesh)
        )
        raise UsageError(
            f"{config.rows} rows do not divide over the {together} devices of {axes}",
            remedy=f"rows of {together} or a multiple of it, or another mesh",
        )
    return config


def _make_evaluate(
    config: FinetuneConfig,
    graphdef: nnx.GraphDef,
    held_out: Mapping[str, Sequences],
    model: Model,
) -> Callable[[TrainState], HeldOut]:
    share = _read_alike(model, [part.sizes for part in held_out.values()])
    measure = make_evaluator(
        graphdef, held_out, config, share=share, mesh=model.mesh, rules=model.rules
    )
    if config.dtype == "float32":
        return lambda state: measure(state.params)
    cast = jax.jit(partial(_cast, dtype=config.dtype))
    return lambda state: measure(cast(state.params))


def _read_alike(model: Model, sizes: list[Int[np.ndarray, " _"]]) -> bool:
    """Whether all sequences are read alike from the first token on, however long they are."""
    classify = length_classes(model.config)
    if classify is None:
        return True
    return len({classify(int(size)) for size in np.unique(np.concatenate(sizes))}) == 1


def make_trainable(
    config: FinetuneConfig, model: Model, steps: int
) -> tuple[nnx.GraphDef, Callable[[], TrainState]]:
    """The structure of what is trained, and a function that makes its first state.

    Raises:
      UsageError: an option that does not fit the model or the optimizer.
    """
    optimizer = make_optimizer(describe_optimizer(config), steps)
    graphdef, params = model.graphdef, model.params
    if config.train == "lora":
        lora, key = describe_lora(config), jax.random.key(config.seed)
        graphdef, params = add_lora(graphdef, params, lora, key)

    def init() -> TrainState:
        state = make_state(
            params,
            optimizer,
            trainable=LORA if config.train == "lora" else config.trainable,
            frozen_dtype=None if config.dtype == "float32" else config.dtype,
        )
        if model.mesh is None:
            return state
        return place_state(state, model.mesh, model.rules)

    return graphdef, init


def describe_lora(config: FinetuneConfig) -> LoraConfig:
    """The part of a configuration that is about LoRA."""
    return LoraConfig(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        rank_stabilized=config.lora_rank_stabilized,
        targets=config.lora_targets,
    )


def _read(
    config: FinetuneConfig, encoder: PromptEncoder
) -> tuple[Sequences, list[int], Mapping[str, Sequences], str]:
    parts: list[Sequences] = []
    held_out: dict[str, Sequences] = {}
    nothing: NothingUsable | None = None
    with RejectsFile(config.out / "data", written=leads()) as rejects:
        read = partial(read_sequences, encoder=encoder, options=config, reject=rejects.write)
        try:
            for path in config.data:
                parts.append(read(path, prompt_loss_weight=config.prompt_loss_weight))
            for name, path in _name_sets(config.eval_data).items():
                held_out[name] = read(path)
        except NothingUsable as error:
            nothing = error  # the file of rejects says why, and must be there
    if nothing is not None:
        remedy = f"see the reasons in {rejects.path}"
        raise DataError(nothing.message, file=nothing.file, remedy=remedy)
    rejected = rejects.summarize() if rejects.total else ""
    if rejected and config.strict:
        raise DataError(rejected, remedy="mend them, or run without --strict")
    return join_sequences(parts), [len(part) for part in parts], held_out, rejected


def _name_sets(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Held-out data sets by the names of their files, or by their paths where these are alike."""
    names = [path.name.partition(".")[0] for path in paths]
    if len(set(paths)) < len(paths):
        raise UsageError("a held-out data set comes twice", remedy="give it once")
    alike = len(set(names)) < len(names)
    return dict(zip(map(str, paths) if alike else names, paths, strict=True))


def describe_optimizer(config: FinetuneConfig) -> OptimizerConfig:
    """The part of a configuration that is about the optimizer."""
    names = {field.name for field in dataclasses.fields(OptimizerConfig)}
    given = {field.name for field in dataclasses.fields(config)}
    shared = {name: getattr(config, name) for name in names & given}
    return OptimizerConfig(name=config.optimizer, **shared)


def _cast(params: nnx.State, *, dtype: str) -> nnx.State:
    return jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)
