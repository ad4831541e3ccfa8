"""What comes out of a run: a Hugging Face folder, or an adapter folder as PEFT reads it."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from functools import partial

import jax
from flax import nnx

from instructjax.errors import ModelError
from instructjax.finetuning.adapters import write_adapter
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.prepare import describe_lora, load_for_training, make_trainable
from instructjax.finetuning.run_folder import MODEL, blaming, names_staged
from instructjax.finetuning.state import TrainState
from instructjax.models import Model
from instructjax.models.lora import merge_lora
from instructjax.prompts.options import PromptOptions
from instructjax.sharding.processes import gather, leads, several


def export_result(
    config: FinetuneConfig, model: Model, graphdef: nnx.GraphDef, state: TrainState
) -> None:
    """Writes OUT/model; it is there whole or not at all. Of several processes all must call this.

    Args:
      config: of the run.
      model: that the run began with.
      graphdef: of what was trained.
      state: after training.
    """
    from instructjax.models.checkpoints.export import export_folder, new_folder

    if not config.adapter:
        graphdef, state = with_exact_base(config, model, graphdef, state)
    if several():
        parts = (state.trainable,) if config.adapter else (state.trainable, state.frozen)
        whole = jax.tree.map(partial(gather, keep=leads()), parts)
        if not leads():
            return
        frozen = state.frozen if config.adapter else whole[1]
        state = dataclasses.replace(state, trainable=whole[0], frozen=frozen)
    done = config.out / MODEL
    for left in names_staged(config.out):
        shutil.rmtree(config.out / left, ignore_errors=True)
    if config.adapter:
        lora, base = describe_lora(config), str(config.model)
        with blaming(done), new_folder(done, replace=True) as folder:
            write_adapter(model, state.trainable, lora, folder, base=base)
        return
    merged = merged_model(config, model, graphdef, state)
    try:
        export_folder(merged, done, dtype=config.export_dtype or "float32", replace=True)
    except ModelError as error:
        error.remedy = f"{error.remedy} and run the same command again"
        raise


def with_exact_base(
    config: FinetuneConfig, model: Model, graphdef: nnx.GraphDef, state: TrainState
) -> tuple[nnx.GraphDef, TrainState]:
    """What was not trained as it is stored, where training had it rounded; it is read again.

    Several processes must call this together.
    """
    if config.dtype == "float32" or not jax.tree.leaves(state.frozen):
        return graphdef, state
    exact = dataclasses.replace(config, dtype="float32")
    base, _ = load_for_training(exact, model.mesh)
    graphdef, init = make_trainable(exact, base, steps=1)
    return graphdef, dataclasses.replace(state, frozen=init().frozen)


def merged_model(
    config: FinetuneConfig, model: Model, graphdef: nnx.GraphDef, state: TrainState
) -> Model:
    """The model with what was trained in the place of what was loaded, LoRA merged.

    It has the base's chat template only if the run trained on it.
    """
    graphdef, params = merge_lora(graphdef, state.params)
    tokenizer = model.tokenizer
    if explain_template(config) is not None:
        tokenizer = dataclasses.replace(tokenizer, chat_template=None)
    return dataclasses.replace(
        model,
        name=f"{model.name} (fine-tuned)",
        graphdef=graphdef,
        params=params,
        tokenizer=tokenizer,
        fingerprint="",
    )


def explain_template(config: FinetuneConfig) -> str | None:
    """Why a run's model has no chat template; None where it has the base's.

    >>> from pathlib import Path
    >>> options = {"model": "base", "data": (Path("rows.jsonl"),), "out": Path("run")}
    >>> explain_template(FinetuneConfig(**options, layout="alpaca"))
    'no chat template: it was trained on the layout alpaca (score it with --layout alpaca)'
    """
    if PromptOptions(layout=config.layout).uses_chat_template:
        return None
    # Templates are given turns: what a layout makes of c and z they cannot tell apart.
    layout = config.layout
    return (
        f"no chat template: it was trained on the layout {layout} "
        f"(score it with --layout {shlex.quote(str(layout))})"
    )
