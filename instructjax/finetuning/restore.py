"""A model as a run has it in a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from instructjax.errors import DataError, UsageError
from instructjax.finetuning.adapters import write_adapter
from instructjax.finetuning.checkpoints import Checkpoints
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config
from instructjax.finetuning.export import merged_model
from instructjax.finetuning.prepare import describe_lora, load_for_training, make_trainable
from instructjax.finetuning.run_folder import CHECKPOINTS, CONFIG, MANIFEST, blaming
from instructjax.finetuning.state import TrainState
from instructjax.models import Model
from instructjax.scoring.runs.manifest import read_json


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a fine-tuning run."""
    return all((Path(folder) / name).is_file() for name in (CONFIG, MANIFEST))


def config_of(out: Path) -> FinetuneConfig:
    """What the run of a folder is."""
    return FinetuneConfig(**read_config(out / CONFIG))


def load_trained(out: str | Path, step: int | None = None, *, mesh: Mesh | None = None) -> Model:
    """The model after a step of a run, LoRA merged, in float32.

    It has the base's chat template if that is what the run trained on, else none.

    Args:
      out: folder of the run.
      step: one that has a checkpoint; by default the newest.
      mesh: of the devices that it is split over, whatever mesh it was trained on.

    Raises:
      UsageError: there is no such run, or no such checkpoint.
      DataError: the checkpoint is damaged, or the base is no longer what was trained.
    """
    config, model, graphdef, state = _restore(Path(out), step, mesh)
    return merged_model(config, model, graphdef, state)


def write_trained_adapter(out: str | Path, folder: Path, step: int | None = None) -> Model:
    """Write what LoRA has learned in a run as an adapter folder of PEFT.

    Args:
      out: folder of the run.
      folder: is made.
      step: one that has a checkpoint; by default the newest.

    Returns:
      The base model.

    Raises:
      UsageError: there is no such run or checkpoint, or it was not of LoRA.
      DataError: the checkpoint is damaged, or the folder cannot be written.
    """
    out = Path(out)
    if config_of(out).train != "lora":
        raise UsageError(
            "trained all parameters, not LoRA's", file=out, remedy="leave out --adapter"
        )
    config, model, _, state = _restore(out, step, None)
    with blaming(folder):
        write_adapter(model, state.trainable, describe_lora(config), folder, base=str(config.model))
    return model


def _restore(
    out: Path, step: int | None, mesh: Mesh | None
) -> tuple[FinetuneConfig, Model, nnx.GraphDef, TrainState]:
    # What was not trained is as it is stored, whatever it was rounded to in training.
    config = dataclasses.replace(config_of(out), dtype="float32")
    checkpoints = Checkpoints(out / CHECKPOINTS)
    try:
        steps = checkpoints.steps
        if not steps or step not in (None, *steps):
            raise UsageError(
                f"has no checkpoint of step {step}" if step else "has no checkpoint",
                file=out,
                remedy=f"there are {', '.join(map(str, steps)) or 'none yet'}",
            )
        model, _ = load_for_training(config, mesh)
        _check_base(out, config, model)
        graphdef, init = make_trainable(config, model, steps=1)
        state, _ = checkpoints.restore(steps[-1] if step is None else step, init())
        return config, model, graphdef, state
    finally:
        checkpoints.close()


def _check_base(out: Path, config: FinetuneConfig, model: Model) -> None:
    run = read_json(out / MANIFEST)
    if not isinstance(run, dict) or run.get("model_fingerprint") != model.fingerprint:
        raise DataError(
            f"{config.model} is not the model that this run trained: its weights or its "
            "configuration have changed",
            file=out,
            remedy=f"put back the one that {MANIFEST} has the fingerprint of",
        )
