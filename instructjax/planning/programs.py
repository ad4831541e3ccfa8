"""The program that a task runs, with abstract arrays in the place of weights and data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from instructjax.batching.batch import Batch
from instructjax.finetuning.batch import SftBatch
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.placement import place_state
from instructjax.finetuning.state import TrainState, make_state
from instructjax.finetuning.step import make_train_step
from instructjax.models.config import DecoderConfig
from instructjax.models.lora import LORA, LoraConfig, add_lora
from instructjax.models.model import abstract_decoder
from instructjax.models.sharded import param_shardings
from instructjax.planning.setting import Setting
from instructjax.scoring.engine import token_scores_on_mesh
from instructjax.sharding.rules import ShardingRules

# Steps of a run; the learning rate's schedule is all that depends on it.
_STEPS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """What a task runs.

    Attributes:
      graphdef: of the decoder.
      state: parameters and, when fine-tuning, the optimizer's state: abstract arrays by kind.
      batch: abstract.
      lower: lowers it for the devices of the mesh.
    """

    graphdef: nnx.GraphDef
    state: dict[str, Any]
    batch: Any
    lower: Callable[[], Any]


def build_program(
    config: DecoderConfig, setting: Setting, mesh: Mesh | AbstractMesh | None = None
) -> Program:
    """The step of `instructjax finetune`, or the function that scoring calls for each batch.

    Args:
      config: of the model.
      setting: what is asked for.
      mesh: of the devices; without them the program cannot be lowered, only looked at.
    """
    mesh = setting.abstract_mesh if mesh is None else mesh
    if setting.task == "score":
        return _scoring(config, setting, mesh)
    return _step(config, setting, mesh)


def _step(config: DecoderConfig, setting: Setting, mesh: Any) -> Program:
    rules = setting.rules
    graphdef, state = _train_state(config, setting, mesh)
    rows = setting.batch // setting.micro_batches
    lead = (setting.micro_batches,) if setting.micro_batches > 1 else ()
    weights = _array((*lead, rows, setting.length), jnp.float32, setting, mesh, len(lead))
    sft = SftBatch(batch=_rows(lead, rows, setting, mesh), weights=weights)

    def lower() -> Any:
        step: Any = make_train_step(
            graphdef,
            make_optimizer(setting.optimizer, _STEPS),
            compute_dtype=setting.dtype,
            remat=setting.remat,
            mesh=mesh,
            rules=rules,
        )
        with warnings.catch_warnings():  # a plan says it of its setting
            warnings.filterwarnings("ignore", "rows of .* too short to be split", UserWarning)
            return _lower(step, (state, sft), donate=len(jax.tree.leaves(state)))

    kept = (state.step, state.opt_state)
    kinds = {"parameters": (state.trainable, state.frozen), "optimizer": kept}
    return Program(graphdef=graphdef, state=kinds, batch=sft, lower=lower)


def _train_state(
    config: DecoderConfig, setting: Setting, mesh: Any
) -> tuple[nnx.GraphDef, TrainState]:
    kind = config, setting.optimizer, setting.lora, setting.dtype
    return _make_train_state(*kind)[0], _place_train_state(mesh, setting.rules, *kind)


# A search asks for many settings of one mesh after the other, and for many meshes.
@lru_cache(maxsize=1)
def _place_train_state(mesh: Any, rules: ShardingRules, *kind: Any) -> TrainState:
    return place_state(_make_train_state(*kind)[1], mesh, rules, put=_abstract)


@lru_cache(maxsize=1)
def _make_train_state(
    config: DecoderConfig, optimizer: OptimizerConfig, lora: LoraConfig | None, dtype: str
) -> tuple[nnx.GraphDef, TrainState]:
    graphdef, params = abstract_decoder(config, dtype if lora else "float32")
    if lora is not None:
        found: list[nnx.GraphDef] = []

        def adapt(params: nnx.State) -> nnx.State:
            made, params = add_lora(graphdef, params, lora, jax.random.key(0))  # type: ignore
            found.append(made)
            return params

        params = jax.eval_shape(adapt, params)
        graphdef = found[0]
    transform, chosen = make_optimizer(optimizer, _STEPS), ("*",) if lora is None else LORA
    state = jax.eval_shape(lambda p: make_state(p, transform, trainable=chosen), params)
    return graphdef, state


def _scoring(config: DecoderConfig, setting: Setting, mesh: Any) -> Program:
    graphdef, params = abstract_decoder(config, setting.dtype)
    params = jax.tree.map(_abstract, params, param_shardings(config, mesh, setting.rules))
    batch = _rows((), setting.parts("batch"), setting, mesh)

    def lower() -> Any:
        options: dict[str, Any] = {"mesh": mesh, "rules": setting.rules, "top_k": 0}
        score = partial(token_scores_on_mesh, graphdef, **options)
        return _lower(score, (params, batch))

    return Program(graphdef=graphdef, state={"parameters": params}, batch=batch, lower=lower)


def _lower(function: Callable[..., Any], arguments: tuple[Any, ...], donate: int = 0) -> Any:
    """The program of these arguments, handed over one by one; the memory of the first is reused."""
    leaves, tree = jax.tree.flatten(arguments)

    def call(*leaves: Any) -> Any:
        return function(*jax.tree.unflatten(tree, leaves))

    return jax.jit(call, donate_argnums=tuple(range(donate))).lower(*leaves)


def _rows(lead: tuple[int, ...], rows: int, setting: Setting, mesh: Any) -> Batch:
    """Full rows, all of whose tokens are scored: the most that a batch of the size can cost."""

    def make(*shape: int) -> Any:
        return _array((*lead, *shape), jnp.int32, setting, mesh, len(lead))

    long = (rows, setting.length)
    return Batch(
        tokens=make(*long),
        positions=make(*long),
        ends=make(*long),
        sources=make(*long),
        targets=make(*long),
        num_scored=make(rows),
        tile=setting.tile,
    )


def _array(shape: tuple[int, ...], dtype: Any, setting: Setting, mesh: Any, axis: int) -> Any:
    spec = setting.rules.spec((None,) * axis + ("batch",), mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _abstract(leaf: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
