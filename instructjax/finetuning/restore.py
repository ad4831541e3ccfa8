"""A model as a run has it in a checkpoint."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from instructjax.errors import UsageError
from instructjax.finetuning.checkpoints import Checkpoints
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config
from instructjax.finetuning.export import merged_model
from instructjax.finetuning.prepare import load_for_training, make_trainable
from instructjax.finetuning.run_folder import CHECKPOINTS, CONFIG
from instructjax.models import Model


def load_trained(out: str | Path, step: int | None = None, *, mesh: Mesh | None = None) -> Model:
    """The model after a step of a run, LoRA merged, in float32 (LoRA on bfloat16: in that).

    Args:
      out: folder of the run.
      step: one that has a checkpoint; by default the newest.
      mesh: of the devices that it is split over, whatever mesh it was trained on.

    Raises:
      UsageError: there is no such run, or no such checkpoint.
      DataError: the checkpoint is damaged.
    """
    out = Path(out)
    config = FinetuneConfig(**read_config(out / CONFIG))
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
        graphdef, init = make_trainable(config, model, steps=1)
        state, _ = checkpoints.restore(steps[-1] if step is None else step, init())
        return merged_model(model, graphdef, state)
    finally:
        checkpoints.close()
