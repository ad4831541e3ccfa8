"""Which of several given responses: scores of candidates, the posterior over them, its worth."""

from instructjax.scoring.ranking.api import rank
from instructjax.scoring.ranking.calibration import (
    brier_score,
    expected_calibration_error,
    log_loss,
)
from instructjax.scoring.ranking.metrics import RankMetrics, RankTotals
from instructjax.scoring.ranking.normalize import (
    calibrate,
    divide_by_length,
    find_ties,
    log_posterior,
    order_candidates,
    posterior,
    subtract_premise,
)
from instructjax.scoring.ranking.options import RankOptions
from instructjax.scoring.ranking.result import RankedExample, Ranking
from instructjax.scoring.ranking.stream import rank_rows
from instructjax.scoring.ranking.table import RANK_SCHEMA

__all__ = [
    "RANK_SCHEMA",
    "RankMetrics",
    "RankOptions",
    "RankTotals",
    "RankedExample",
    "Ranking",
    "brier_score",
    "calibrate",
    "divide_by_length",
    "expected_calibration_error",
    "find_ties",
    "log_loss",
    "log_posterior",
    "order_candidates",
    "posterior",
    "rank",
    "rank_rows",
    "subtract_premise",
]
