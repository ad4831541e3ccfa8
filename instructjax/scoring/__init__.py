"""log Pr(y | c, z): pure functions on arrays, a streaming engine, and the table of results."""

from instructjax.scoring.api import make_encoder, score
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.compare import (
    DivergedRow,
    Divergences,
    ScoreDifferences,
    compare_scores,
    hidden_divergences,
    kl_divergence,
    next_token_js,
    next_token_kl,
)
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
from instructjax.scoring.ranking import (
    RANK_SCHEMA,
    RankedExample,
    Ranking,
    RankMetrics,
    RankOptions,
    brier_score,
    calibrate,
    divide_by_length,
    expected_calibration_error,
    find_ties,
    log_loss,
    log_posterior,
    order_candidates,
    posterior,
    rank,
    rank_rows,
    subtract_premise,
)
from instructjax.scoring.result import Scores
from instructjax.scoring.rolling import DocumentScore, score_document, score_documents
from instructjax.scoring.rows import ScoredRow
from instructjax.scoring.runs.stream import Headway, score_rows
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables.reading import read_scores
from instructjax.scoring.tables.table import SCHEMA, read_metadata
from instructjax.scoring.windows import find_windows
from instructjax.scoring.words import WordScores, word_log_probs

__all__ = [
    "RANK_SCHEMA",
    "SCHEMA",
    "DivergedRow",
    "Divergences",
    "DocumentScore",
    "Headway",
    "RankMetrics",
    "RankOptions",
    "RankedExample",
    "Ranking",
    "ScoreCache",
    "ScoreDifferences",
    "ScoredRequest",
    "ScoredRow",
    "Scores",
    "TokenScores",
    "WordScores",
    "Work",
    "brier_score",
    "calibrate",
    "compare_scores",
    "describe_run",
    "divide_by_length",
    "expected_calibration_error",
    "find_ties",
    "find_windows",
    "hidden_divergences",
    "kl_divergence",
    "log_loss",
    "log_posterior",
    "make_encoder",
    "next_token_js",
    "next_token_kl",
    "next_token_log_probs",
    "open_table",
    "order_candidates",
    "posterior",
    "rank",
    "rank_rows",
    "read_metadata",
    "read_scores",
    "score",
    "score_document",
    "score_documents",
    "score_positions",
    "score_requests",
    "score_rows",
    "scored_mask",
    "sequence_log_probs",
    "subtract_premise",
    "token_log_probs",
    "token_scores",
    "word_log_probs",
]
