"""How far a run is: what a checkpoint says beside parameters, and a step of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from instructjax.finetuning.evaluation import HeldOut


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step.

    Attributes:
      step: its number, from 1; 0 for the look at the held-out data before the first.
      steps: how many there will be.
      loss: weighted mean of -log p over the step's tokens, before the update, in nats a token.
      learning_rate: of the step.
      grad_norm: of the gradient of the mean, before clipping.
      num_response_tokens: tokens learned.
      num_sequences: that they are of.
      num_tokens: tokens of the sequences.
      num_computed: those of them that were computed; what sequences share is computed once.
      seconds: that the step took, without the time it waited for data.
      waited: seconds that it waited for data.
      held_out: log-probabilities of held-out data after the step, if it was time for a look.
      saved: whether a checkpoint of it is being written.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_response_tokens: int
    num_sequences: int
    num_tokens: int
    num_computed: int
    seconds: float
    waited: float
    held_out: HeldOut | None = None
    saved: bool = False

    def to_json(self) -> dict[str, Any]:
        """What goes to metrics.jsonl: units as above; rates in response tokens a second."""
        values: dict[str, Any] = {}
        if self.step:
            values = {
                "loss": self.loss,
                "learning_rate": self.learning_rate,
                "grad_norm": self.grad_norm,
                "response_tokens": self.num_response_tokens,
                "sequences": self.num_sequences,
                "tokens": self.num_tokens,
                "computed": self.num_computed,
                "seconds": self.seconds,
                "waited": self.waited,
                "response_tokens_per_second": self.num_response_tokens
                / max(self.seconds + self.waited, 1e-9),
            }
        return values | ({"held_out": self.held_out.to_json()} if self.held_out else {})


@dataclass(frozen=True, kw_only=True)
class Headway:
    """What a run has done, over all its restarts.

    Attributes:
      data: state of the iterator over batches.
      best: highest held-out log-probability, in nats a token.
      best_step: where it was.
      worse: looks at the held-out data since then.
      seconds, waited: sums over steps.
      num_response_tokens, num_sequences, num_tokens, num_computed, num_positions: sums over steps.
    """

    data: Any = None
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    num_response_tokens: int = 0
    num_sequences: int = 0
    num_tokens: int = 0
    num_computed: int = 0
    num_positions: int = 0

    def look(self, step: int, held_out: HeldOut) -> Headway:
        """After a look at the held-out data."""
        value = held_out.total().per_token
        if self.best is None or value > self.best:
            return dataclasses.replace(self, best=value, best_step=step, worse=0)
        return dataclasses.replace(self, worse=self.worse + 1)

    def add(self, report: StepReport, data: Any, positions: int) -> Headway:
        """After a step."""
        return dataclasses.replace(
            self,
            data=data,
            seconds=self.seconds + report.seconds,
            waited=self.waited + report.waited,
            num_response_tokens=self.num_response_tokens + report.num_response_tokens,
            num_sequences=self.num_sequences + report.num_sequences,
            num_tokens=self.num_tokens + report.num_tokens,
            num_computed=self.num_computed + report.num_computed,
            num_positions=self.num_positions + positions,
        )

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Headway:
        """From a checkpoint."""
        return cls(**values)

    @property
    def waited_share(self) -> float:
        """Of the time of steps, what they waited for data."""
        return self.waited / max(self.seconds + self.waited, 1e-9)

    @property
    def useful_share(self) -> float:
        """Of the positions computed, those that held a token."""
        return self.num_computed / max(self.num_positions, 1)
