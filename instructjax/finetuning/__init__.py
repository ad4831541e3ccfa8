"""Maximize log Pr(y | c, z) over data: weights of tokens, losses, one compiled step, the loop.

Names are loaded when they are first used, so that a command line can show a run's options without
loading JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructjax.finetuning.batch import SftBatch, WeightedIds, make_sft_batch, stack_batches
    from instructjax.finetuning.config import FinetuneConfig
    from instructjax.finetuning.evaluation import CellScore, HeldOut
    from instructjax.finetuning.headway import StepReport
    from instructjax.finetuning.loop import finetune
    from instructjax.finetuning.losses import dpo_loss, dpo_objective, sft_loss
    from instructjax.finetuning.masks import response_mask, response_weights, weigh_tokens
    from instructjax.finetuning.optimizers import (
        Optimizer,
        OptimizerConfig,
        make_optimizer,
        make_schedule,
    )
    from instructjax.finetuning.pairs import PairBatch, make_pair_batch, pair_log_probs
    from instructjax.finetuning.partition import split_params
    from instructjax.finetuning.placement import place_state
    from instructjax.finetuning.restore import load_trained
    from instructjax.finetuning.state import TrainState, make_state
    from instructjax.finetuning.step import StepMetrics, make_loss_and_grads, make_train_step

_FILES = {
    "batch": ("SftBatch", "WeightedIds", "make_sft_batch", "stack_batches"),
    "config": ("FinetuneConfig",),
    "evaluation": ("CellScore", "HeldOut"),
    "headway": ("StepReport",),
    "loop": ("finetune",),
    "losses": ("dpo_loss", "dpo_objective", "sft_loss"),
    "masks": ("response_mask", "response_weights", "weigh_tokens"),
    "optimizers": ("Optimizer", "OptimizerConfig", "make_optimizer", "make_schedule"),
    "pairs": ("PairBatch", "make_pair_batch", "pair_log_probs"),
    "partition": ("split_params",),
    "placement": ("place_state",),
    "restore": ("load_trained",),
    "state": ("TrainState", "make_state"),
    "step": ("StepMetrics", "make_loss_and_grads", "make_train_step"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "CellScore",
    "FinetuneConfig",
    "HeldOut",
    "Optimizer",
    "OptimizerConfig",
    "PairBatch",
    "SftBatch",
    "StepMetrics",
    "StepReport",
    "TrainState",
    "WeightedIds",
    "dpo_loss",
    "dpo_objective",
    "finetune",
    "load_trained",
    "make_loss_and_grads",
    "make_optimizer",
    "make_pair_batch",
    "make_schedule",
    "make_sft_batch",
    "make_state",
    "make_train_step",
    "pair_log_probs",
    "place_state",
    "response_mask",
    "response_weights",
    "sft_loss",
    "split_params",
    "stack_batches",
    "weigh_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value
