"""`instructjax sample DATA --out FILE`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from instructjax.cli.table_options import DataOptions


@dataclass(frozen=True, kw_only=True)
class Sample(DataOptions):
    """Write responses y ~ Pr(y | c, z) to every row of a data file, with each token's log-prob.

    Rows are read, answered and written as a stream. Rows that cannot be used go to
    OUT.rejects.jsonl with place and reason. The table appears when it is complete; it is itself a
    data file, with the responses as outputs (those without text are no data). A run that is
    stopped, in whatever way, keeps what it has in OUT.parts; the same command goes on, and the
    table is the same.
    """

    EXAMPLE: ClassVar[str] = "instructjax sample rows.jsonl --out samples.jsonl --temperature 0"
    DONE: ClassVar[str] = "answered"
    NEEDS_OUTPUT: ClassVar[bool] = False

    max_new_tokens: int = 256
    """Of each response, at most."""
    num_samples: int = 1
    """Responses to each row."""
    seed: int = 0
    """With a row's id and the number of the response it decides every draw."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens only, whose probabilities together reach this."""
    min_p: float = 0.0
    """Draw only from tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Logits of tokens that are there already are divided by it if positive, else multiplied."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A string that ends a response, beside the model's own stop tokens; give it once a string."""
    score: bool = True
    """Report log-probs of scoring what was written; else the decoder's, rounded differently."""
    slots: int = 16
    """Responses written at a time, on each device."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.sample_run import run_sample

        return run_sample(self)
