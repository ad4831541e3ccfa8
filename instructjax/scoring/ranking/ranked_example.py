"""The candidates of one example, compared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from instructjax.scoring.ranking.normalize import find_ties, log_posterior, order_candidates


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RankedExample:
    """The K candidates of one example, compared. Arrays run over the candidates in their order.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      instruction_id, input_id, task: the example's.
      log_prob: log Pr(y | c, z), nats.
      num_tokens, num_bytes, num_characters: of y; the end-of-turn token is a token of no bytes.
      greedy: whether greedy decoding gives y. Of candidates with their end of turn at most one;
        without it (`include_eos=False`) one candidate may begin another.
      score: `log_prob` under the normalization asked for.
      answer: index of the right candidate, if it is known.
      status: "ok", or flags joined by commas, under any of the prompts that y was scored under;
        see `ScoredRow.status`.
    """

    id: str
    instruction_id: str | None = None
    input_id: str | None = None
    task: str | None = None
    log_prob: Float64[np.ndarray, " K"]
    num_tokens: Int64[np.ndarray, " K"]
    num_bytes: Int64[np.ndarray, " K"]
    num_characters: Int64[np.ndarray, " K"]
    greedy: Bool[np.ndarray, " K"]
    score: Float64[np.ndarray, " K"]
    answer: int | None = None
    status: tuple[str, ...] = ()

    @cached_property
    def log_posterior(self) -> Float64[np.ndarray, " K"]:
        """Log-softmax of the scores, nats; see `log_posterior`."""
        with np.errstate(invalid="ignore"):  # where the model gave no number, so does this
            return np.asarray(log_posterior(self.score))

    @property
    def posterior(self) -> Float64[np.ndarray, " K"]:
        """Softmax of the scores: each candidate's share."""
        return np.exp(self.log_posterior)

    @cached_property
    def rank(self) -> Int64[np.ndarray, " K"]:
        """1 for the best; of equal scores the first candidate comes first."""
        return np.asarray(order_candidates(self.score))

    @property
    def best(self) -> int:
        """Index of the best candidate; of equals the first."""
        return int(self.rank.argmin())

    @cached_property
    def ties(self) -> Bool[np.ndarray, " K"]:
        """Which candidates share the best score with another."""
        return np.asarray(find_ties(self.score))

    @property
    def tie(self) -> bool:
        """Whether the best score is shared."""
        return bool(self.ties.any())

    @property
    def correct(self) -> bool | None:
        """Whether the best candidate is the right one; None where that is not known."""
        return None if self.answer is None else self.best == self.answer

    def __len__(self) -> int:
        return len(self.log_prob)

    def __repr__(self) -> str:
        return (
            f"RankedExample(id={self.id!r}, best={self.best}, "
            f"posterior={self.posterior.round(3).tolist()}, tie={self.tie}, correct={self.correct})"
        )
