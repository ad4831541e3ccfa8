"""Scores of earlier runs, found by what was computed and never by a name."""

from instructjax.scoring.cache.scores import ScoreCache, open_cache, score_cached

__all__ = ["ScoreCache", "open_cache", "score_cached"]
