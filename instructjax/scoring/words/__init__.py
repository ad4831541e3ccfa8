"""log p of words, with the correction for spaces that begin them as an option."""

from instructjax.scoring.words.log_probs import WordScores, word_log_probs

__all__ = ["WordScores", "word_log_probs"]
