"""Maximize log Pr(y | c, z) over data: weights of tokens, losses, optimizers, one compiled step."""

from instructjax.finetuning.batch import SftBatch, WeightedIds, make_sft_batch, stack_batches
from instructjax.finetuning.losses import sft_loss
from instructjax.finetuning.masks import response_mask, response_weights, weigh_tokens
from instructjax.finetuning.optimizers import (
    Optimizer,
    OptimizerConfig,
    make_optimizer,
    make_schedule,
)
from instructjax.finetuning.partition import split_params
from instructjax.finetuning.state import TrainState, make_state
from instructjax.finetuning.step import StepMetrics, make_loss_and_grads, make_train_step

__all__ = [
    "Optimizer",
    "OptimizerConfig",
    "SftBatch",
    "StepMetrics",
    "TrainState",
    "WeightedIds",
    "make_loss_and_grads",
    "make_optimizer",
    "make_schedule",
    "make_sft_batch",
    "make_state",
    "make_train_step",
    "response_mask",
    "response_weights",
    "sft_loss",
    "split_params",
    "stack_batches",
    "weigh_tokens",
]
