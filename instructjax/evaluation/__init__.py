"""P(c, z, y): what responses are worth, one row a (model, example, metric)."""

from instructjax.evaluation.table import EVALUATION_SCHEMA, read_evaluation

__all__ = ["EVALUATION_SCHEMA", "read_evaluation"]
