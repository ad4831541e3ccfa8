"""P(c, z, y): what responses are worth, one row a (model, example, metric).

`table` says what the columns are. The metrics are pure functions, to use on their own too.
"""

from instructjax.data.text_hash import normalize_text, text_hash
from instructjax.evaluation.answers import exact_match, normalize_answer, token_f1
from instructjax.evaluation.api import evaluate
from instructjax.evaluation.ifeval.verify import follow_loose, follow_strict, read_constraints
from instructjax.evaluation.metrics import METRICS, Case, Metric, Value
from instructjax.evaluation.overlap import chrf, rouge_l
from instructjax.evaluation.result import Evaluation
from instructjax.evaluation.summary import (
    Difference,
    Flagged,
    Mean,
    clustered_mean,
    compare_models,
    count_flags,
    summarize,
)
from instructjax.evaluation.table import EVALUATION_SCHEMA, read_evaluation

__all__ = [
    "EVALUATION_SCHEMA",
    "METRICS",
    "Case",
    "Difference",
    "Evaluation",
    "Flagged",
    "Mean",
    "Metric",
    "Value",
    "chrf",
    "clustered_mean",
    "compare_models",
    "count_flags",
    "evaluate",
    "exact_match",
    "follow_loose",
    "follow_strict",
    "normalize_answer",
    "normalize_text",
    "read_constraints",
    "read_evaluation",
    "rouge_l",
    "summarize",
    "text_hash",
    "token_f1",
]
