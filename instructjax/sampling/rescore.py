"""Log-probs of responses as `score` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from instructjax.models.model import Model
from instructjax.prompts.request import Request
from instructjax.sampling.responses import PromptToSample, Sampled
from instructjax.scoring.engine import score_requests


def rescore(
    model: Model, prompts: Sequence[PromptToSample], made: Sequence[Sampled]
) -> list[Sampled]:
    """The same responses with the model's token log-probs from the scoring engine.

    A decoder that computes one token at a time sums in another order than one that computes whole
    sequences: on badly conditioned tokens the two differ by more than 1e-5 nats in float32.

    Args:
      model: who wrote them.
      prompts: that they answer, by `Sampled.prompt`.
      made: responses, in any order.
    """
    requests = []
    for i, one in enumerate(made):
        prompt = np.asarray(prompts[one.prompt].ids, np.int32)
        ids, start = np.concatenate([prompt, one.ids]), len(prompt)
        requests.append(Request(ids=ids, spans=((start, len(ids)),), num_bytes=0, row=i))
    scored = score_requests(model, requests)
    return [
        replace(one, token_log_probs=scores.token_log_probs)
        for one, scores in zip(made, scored, strict=True)
    ]
