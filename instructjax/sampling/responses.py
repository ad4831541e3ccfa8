"""Prompts that are to be answered, and responses while they are written and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.sampling.stops import FinishReason, StopFinder

# Columns that cost little beside a step's weights. Up to so many, empty ones change no bit of what
# a step computes; sums over more are cut up by the compiler.
SHORT = 512
Group = tuple[int, list[int]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptToSample:
    """A prompt, and what its samples are drawn with.

    Attributes:
      ids: int32 [n], n >= 1.
      name: with the seed and a sample's number it decides every draw; nothing else does.
      num_samples: how many responses to write.
      max_new_tokens: of each.
    """

    ids: np.ndarray
    name: str
    num_samples: int = 1
    max_new_tokens: int = 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sampled:
    """One response.

    Attributes:
      prompt: index of the prompt.
      sample: number of the response among the prompt's.
      ids: int32 [n], the stop token included if it was drawn, and those of a stop string.
      text: without them.
      token_log_probs: float32 [n], nats, under the model.
      sampling_log_probs: float32 [n], nats, under the distribution the tokens were drawn from.
      finish_reason: "stop_token", "stop_string" or "length".
    """

    prompt: int
    sample: int
    ids: np.ndarray
    text: str
    token_log_probs: np.ndarray
    sampling_log_probs: np.ndarray
    finish_reason: FinishReason


def columns_for(tokens: int) -> int:
    """Columns of the cache for a sequence of so many tokens.

    >>> columns_for(30), columns_for(130), columns_for(300), columns_for(1025)
    (64, 192, 384, 1536)
    """
    size = 64
    while size < tokens:
        if size + size // 2 >= tokens and size >= 128:
            return size + size // 2
        size *= 2
    return size


def gather(sizes: Sequence[int], counts: Sequence[int], slots: int) -> Iterator[Group]:
    """Prompts whose sequences share a cache, longest first.

    Its columns are those of the longest, which costs the others time; steps with slots that nobody
    is left to fill cost more. So sequences too few to fill the slots twice take in shorter ones,
    up to `SHORT` columns.

    Args:
      sizes: tokens of the longest sequence that each prompt may become.
      counts: sequences of each prompt.
      slots: of a cache.

    Yields:
      (columns, prompts).

    >>> list(gather([60, 300, 70, 5000], [1, 1, 1, 1], slots=16))
    [(6144, [3]), (384, [1, 2, 0])]
    """
    columns, members, total = 0, [], 0
    for prompt in sorted(range(len(sizes)), key=lambda i: (-columns_for(sizes[i]), i)):
        own = columns_for(sizes[prompt])
        joins = own == columns or (total < 2 * slots and columns <= SHORT)
        if members and not joins:
            yield columns, members
            members, total = [], 0
        columns = columns if members else own
        members.append(prompt)
        total += counts[prompt]
    if members:
        yield columns, members


def key_of(seed: int, name: str, sample: int) -> np.ndarray:
    """uint32 [2]: the key of a response's draws, from nothing but these three.

    >>> key_of(0, "row 1", 0).dtype, (key_of(0, "row 1", 0) == key_of(0, "row 1", 1)).all()
    (dtype('uint32'), np.False_)
    """
    text = f"{seed}\0{sample}\0{name}".encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.sha256(text).digest()[:8], "<u4").astype(np.uint32)


class Draft:
    """A response that is being written."""

    def __init__(self, prompt: int, sample: int, budget: int, finder: StopFinder) -> None:
        self.prompt, self.sample, self.budget, self.finder = prompt, sample, budget, finder
        self.ids: list[int] = []
        self.log_probs: list[Any] = []
        self.sampling_log_probs: list[Any] = []
        self.margin = np.inf
        self.reason: FinishReason | None = None

    def add(self, drawn: Sequence[Any], stop_ids: Sequence[int]) -> None:
        token, log_prob, sampling_log_prob, margin = drawn
        self.ids.append(int(token))
        self.log_probs.append(log_prob)
        self.sampling_log_probs.append(sampling_log_prob)
        self.margin = min(self.margin, float(margin))
        if int(token) in stop_ids:
            self.reason = "stop_token"
        elif self.finder.add(int(token)):
            self.reason = "stop_string"
        elif len(self.ids) == self.budget:
            self.reason = "length"

    def finish(self) -> Sampled:
        assert self.reason is not None
        return Sampled(
            prompt=self.prompt,
            sample=self.sample,
            ids=np.array(self.ids, np.int32),
            text=self.finder.text,
            token_log_probs=np.array(self.log_probs, np.float32),
            sampling_log_probs=np.array(self.sampling_log_probs, np.float32),
            finish_reason=self.reason,
        )
