"""lm-evaluation-harness over several processes: it runs in process 0, and all of them compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.request import Request
from instructjax.scoring.engine import score_requests
from instructjax.sharding.processes import leads, several, share


def ask(requests: Sequence[Request]) -> None:
    """Process 0 is about to score these, and the others do the same, in `follow`.

    Raises:
      UsageError: this is another process, which would ask everything again.
    """
    if not leads():
        raise UsageError(
            "lm-evaluation-harness runs in process 0, and this is another",
            remedy="call `follow` here, and `release` there at the end",
        )
    if several():
        share([request.to_json() for request in requests])


def refuse_to_write(asking: str) -> NoReturn:
    """Raises a UsageError: of several processes none writes responses."""
    raise UsageError(
        f"{asking} asks for responses, which one process writes alone",
        remedy="start one without --distributed; it uses all devices of its host",
    )


def release() -> None:
    """Nothing more will be asked."""
    if several():
        share(None)


def follow(model: Model) -> None:
    """Computes its part of what process 0 asks for, until that has no more."""
    while (asked := share(None)) is not None:
        for _ in score_requests(model, map(Request.from_json, asked)):
            pass
