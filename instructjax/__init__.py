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

if TYPE_CHECKING:
    from instructjax.batching import Batch, batch_from_lengths
    from instructjax.data import Example, Message, Reject, read_examples
    from instructjax.errors import (
        DataError,
        InstructJaxError,
        ModelError,
        PromptError,
        UsageError,
    )
    from instructjax.models import Model, load_model
    from instructjax.prompts import PromptEncoder, PromptOptions, Request, Tokenizer
    from instructjax.scoring import (
        Divergences,
        DocumentScore,
        RankedExample,
        Ranking,
        ScoreDifferences,
        ScoredRequest,
        ScoredRow,
        Scores,
        WordScores,
        compare_scores,
        kl_divergence,
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

# The public names by theme, and the room that each is in.
_ROOMS = {
    "data": ("Example", "Message", "Reject", "read_examples"),
    "prompts": ("PromptEncoder", "PromptOptions", "Request", "Tokenizer"),
    "models": ("Model", "load_model"),
    "scoring": (
        "Divergences",
        "DocumentScore",
        "RankedExample",
        "Ranking",
        "ScoreDifferences",
        "ScoredRequest",
        "ScoredRow",
        "Scores",
        "WordScores",
        "compare_scores",
        "kl_divergence",
        "next_token_log_probs",
        "rank",
        "rank_rows",
        "read_scores",
        "score",
        "score_document",
        "score_documents",
        "score_requests",
        "score_rows",
        "sequence_log_probs",
        "token_log_probs",
        "token_scores",
        "word_log_probs",
    ),
    "batching": ("Batch", "batch_from_lengths"),
    "errors": ("DataError", "InstructJaxError", "ModelError", "PromptError", "UsageError"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Batch",
    "DataError",
    "Divergences",
    "DocumentScore",
    "Example",
    "InstructJaxError",
    "Message",
    "Model",
    "ModelError",
    "PromptEncoder",
    "PromptError",
    "PromptOptions",
    "RankedExample",
    "Ranking",
    "Reject",
    "Request",
    "ScoreDifferences",
    "ScoredRequest",
    "ScoredRow",
    "Scores",
    "Tokenizer",
    "UsageError",
    "WordScores",
    "__version__",
    "batch_from_lengths",
    "compare_scores",
    "kl_divergence",
    "load_model",
    "next_token_log_probs",
    "rank",
    "rank_rows",
    "read_examples",
    "read_scores",
    "score",
    "score_document",
    "score_documents",
    "score_requests",
    "score_rows",
    "sequence_log_probs",
    "token_log_probs",
    "token_scores",
    "word_log_probs",
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
    elif name in _ROOM_OF:
        value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
