"""instructjax: the instruction-tuned LLM as Pr(y | c, z), in JAX.

c is the instruction, z the user's input, y the response. Names are loaded when they are first
used, so importing the package costs nothing::

    import instructjax as ij

    model = ij.load_model("smollm2-135m-instruct")
    scores = ij.score(model, ij.Example(instruction="Add.", input="1 + 1", output=["2", "3"]))
    scores.log_prob
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from instructjax.xla_flags import keep_sums_right, skip_failing_pass

keep_sums_right()
skip_failing_pass()

if TYPE_CHECKING:
    from instructjax.batching import Batch, batch_from_lengths
    from instructjax.data import Example, Message, Reject, read_examples
    from instructjax.errors import DataError, InstructJaxError, ModelError, PromptError, UsageError
    from instructjax.evaluation import Evaluation, evaluate, read_evaluation
    from instructjax.finetuning import (
        FinetuneConfig,
        OptimizerConfig,
        SftBatch,
        StepReport,
        TrainState,
        WeightedIds,
        dpo_loss,
        finetune,
        load_trained,
        make_optimizer,
        make_sft_batch,
        make_state,
        make_train_step,
        response_mask,
        sft_loss,
        weigh_tokens,
    )
    from instructjax.generalization import Analysis, analyze, conditional_attribution
    from instructjax.models import Model, load_model
    from instructjax.models.lora import LoraConfig, add_lora, merge_lora
    from instructjax.prompts import PromptEncoder, PromptOptions, Request, Tokenizer
    from instructjax.report import Page, Results, make_page, read_results
    from instructjax.sampling import Choice, Samples, beam_search, choose, sample
    from instructjax.scoring import (
        Divergences,
        DocumentScore,
        RankedExample,
        Ranking,
        RankOptions,
        ScoreCache,
        ScoreDifferences,
        ScoredRequest,
        ScoredRow,
        Scores,
        WordScores,
        Work,
        compare_scores,
        kl_divergence,
        make_encoder,
        next_token_log_probs,
        rank,
        rank_rows,
        read_scores,
        score,
        score_document,
        score_documents,
        score_requests,
        score_rows,
        sequence_log_probs,
        token_log_probs,
        token_scores,
        word_log_probs,
    )

    __version__: str

# The rooms that public names are in; those of no other room are in scoring.
_ROOMS = {
    "data": ("Example", "Message", "Reject", "read_examples"),
    "prompts": ("PromptEncoder", "PromptOptions", "Request", "Tokenizer"),
    "models": ("Model", "load_model"),
    "models.lora": ("LoraConfig", "add_lora", "merge_lora"),
    "batching": ("Batch", "batch_from_lengths"),
    "errors": ("DataError", "InstructJaxError", "ModelError", "PromptError", "UsageError"),
    "evaluation": ("Evaluation", "evaluate", "read_evaluation"),
    "sampling": ("Choice", "Samples", "beam_search", "choose", "sample"),
    "generalization": ("Analysis", "analyze", "conditional_attribution"),
    "report": ("Page", "Results", "make_page", "read_results"),
    "scoring": (),
    "finetuning": (
        "FinetuneConfig",
        "OptimizerConfig",
        "SftBatch",
        "StepReport",
        "TrainState",
        "WeightedIds",
        "dpo_loss",
        "finetune",
        "load_trained",
        "make_optimizer",
        "make_sft_batch",
        "make_state",
        "make_train_step",
        "response_mask",
        "sft_loss",
        "weigh_tokens",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "__version__",
    # what a person writes
    "Example",
    "Message",
    "Reject",
    "read_examples",
    # prompts
    "PromptEncoder",
    "PromptOptions",
    "Request",
    "Tokenizer",
    # models
    "Model",
    "load_model",
    # scores
    "Scores",
    "ScoredRow",
    "read_scores",
    "score",
    "score_rows",
    # which of several responses
    "RankOptions",
    "RankedExample",
    "Ranking",
    "rank",
    "rank_rows",
    # what responses are worth
    "Evaluation",
    "evaluate",
    "read_evaluation",
    # responses
    "Choice",
    "Samples",
    "beam_search",
    "choose",
    "sample",
    # two models, two conditions
    "Divergences",
    "ScoreDifferences",
    "compare_scores",
    "kl_divergence",
    # at which level it generalizes; the rest is in `instructjax.generalization`
    "Analysis",
    "analyze",
    "conditional_attribution",
    # words and documents
    "DocumentScore",
    "WordScores",
    "score_document",
    "score_documents",
    "word_log_probs",
    # reports
    "Page",
    "Results",
    "make_page",
    "read_results",
    # requests
    "ScoreCache",
    "ScoredRequest",
    "Work",
    "make_encoder",
    "score_requests",
    # arrays
    "Batch",
    "batch_from_lengths",
    "next_token_log_probs",
    "sequence_log_probs",
    "token_log_probs",
    "token_scores",
    # fine-tuning
    "LoraConfig",
    "OptimizerConfig",
    "SftBatch",
    "TrainState",
    "WeightedIds",
    "add_lora",
    "dpo_loss",
    "make_optimizer",
    "make_sft_batch",
    "make_state",
    "make_train_step",
    "merge_lora",
    "response_mask",
    "sft_loss",
    "weigh_tokens",
    # fine-tuning
    "FinetuneConfig",
    "StepReport",
    "finetune",
    "load_trained",
    # errors
    "DataError",
    "InstructJaxError",
    "ModelError",
    "PromptError",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            value = metadata.version("instructjax")
        except metadata.PackageNotFoundError:
            value = "unknown"
    elif name in _ROOMS:
        value = import_module(f"{__name__}.{name}")
    elif name in __all__:
        room = import_module(f"{__name__}.{_ROOM_OF.get(name, 'scoring')}")
        value = getattr(room, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
