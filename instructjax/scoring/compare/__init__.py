"""Two models, or two conditions, on the same y: differences of log Pr, and divergences."""

from instructjax.scoring.compare.differences import ScoreDifferences, compare_scores
from instructjax.scoring.compare.divergence import (
    hidden_divergences,
    next_token_js,
    next_token_kl,
)
from instructjax.scoring.compare.kl import kl_divergence
from instructjax.scoring.compare.result import DivergedRow, Divergences

__all__ = [
    "DivergedRow",
    "Divergences",
    "ScoreDifferences",
    "compare_scores",
    "hidden_divergences",
    "kl_divergence",
    "next_token_js",
    "next_token_kl",
]
