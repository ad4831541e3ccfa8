"""log Pr(y | c, z): pure functions on arrays, a streaming engine, and the table of results."""

from instructjax.scoring.api import make_encoder, score
from instructjax.scoring.engine import ScoredRequest, Work, score_requests
from instructjax.scoring.head import TokenScores, score_positions
from instructjax.scoring.log_probs import (
    next_token_log_probs,
    scored_mask,
    sequence_log_probs,
    token_log_probs,
    token_scores,
)
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.result import Scores
from instructjax.scoring.rows import ScoredRow, score_rows
from instructjax.scoring.table import SCHEMA, read_metadata
from instructjax.scoring.table_files import open_table, read_scores

__all__ = [
    "SCHEMA",
    "ScoredRequest",
    "ScoredRow",
    "Scores",
    "TokenScores",
    "Work",
    "describe_run",
    "make_encoder",
    "next_token_log_probs",
    "open_table",
    "read_metadata",
    "read_scores",
    "score",
    "score_positions",
    "score_requests",
    "score_rows",
    "scored_mask",
    "sequence_log_probs",
    "token_log_probs",
    "token_scores",
]
