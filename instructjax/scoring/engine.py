"""Requests in, scored requests out, in the same order: windows, packing, sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from instructjax.batching.batch import Batch
from instructjax.batching.packing import PackedRow, pack
from instructjax.batching.prefix_tree import build_tree, input_length
from instructjax.errors import PromptError
from instructjax.models.model import Model
from instructjax.models.rotary import length_classes
from instructjax.models.spmd import over_rows
from instructjax.prompts.request import Request
from instructjax.scoring.dispatch import compute_rows
from instructjax.scoring.head import TokenScores
from instructjax.scoring.log_probs import token_scores
from instructjax.scoring.row_memory import longest_row

# Requests packed together: so many, or about so many tokens of them, scored or not.
WINDOW, WINDOW_TOKENS = 16384, 1 << 23

_token_scores = jax.jit(token_scores, static_argnames="top_k")


@partial(jax.jit, static_argnames=("mesh", "rules", "top_k"))
def token_scores_on_mesh(graphdef, params, batch, *, mesh, rules, top_k):
    compute = partial(token_scores, top_k=top_k)
    return over_rows(compute, graphdef, mesh=mesh, rules=rules)(params, batch)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredRequest:
    """What the model says of one request; arrays run over its scored tokens in order.

    Attributes:
      request: what was scored.
      token_log_probs: float32 [n], nats.
      greedy, entropy, rank: [n]; see `TokenScores`.
      top_ids, top_log_probs: [n, k].
    """

    request: Request
    token_log_probs: np.ndarray
    greedy: np.ndarray
    entropy: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray

    @property
    def log_prob(self) -> float:
        """log Pr(y | c, z) in nats, summed in float64."""
        return float(self.token_log_probs.sum(dtype=np.float64))


@dataclass(kw_only=True)
class Work:
    """What a run has asked for and computed so far, in tokens.

    Attributes:
      requested: tokens of all requests dispatched, as if each were computed alone.
      distinct: tokens left when prefixes that requests of a window share are counted once; a prefix
        counts again in each window that has it.
      useful: positions computed that held a token: `distinct`, prefixes that stand in several
        rows, and a first token that alone is shared.
      computed: positions computed, padding and the empty rows of a mesh included.
      programs: (row length, tile) of every compiled program used.
    """

    requested: int = 0
    distinct: int = 0
    useful: int = 0
    computed: int = 0
    programs: set[tuple[int, int]] = field(default_factory=set)

    @property
    def useful_share(self) -> float:
        """Share of computed positions that held a token of a request."""
        return self.useful / self.computed if self.computed else 1.0


def score_requests(
    model: Model,
    requests: Iterable[Request],
    *,
    top_k: int = 0,
    work: Work | None = None,
    on_row: Callable[[int], None] | None = None,
) -> Iterator[ScoredRequest]:
    """Score a stream of requests, a window at a time, in the order of the input.

    What requests of a window have in common at the start is computed once. On CPU this changes no
    bit, in float32 or bfloat16: a token is computed in the same order whether its prefix is shared
    or not. Only models with soft caps or experts are rounded by the length of the row, within 1e-5
    nats a token in float32. Other platforms attend over a standard row as a whole, where rounding
    may depend on the row in all models: within 1e-5 nats a token in float32, more in bfloat16
    (engines that share prefixes in bfloat16 report 0.1 nats). Score in float32 where that matters.

    A row that several requests share is no longer than `row_memory.longest_row` allows; one that
    does not fit into the device's memory all the same is computed as shorter ones.

    Args:
      model: who scores.
      requests: any iterable; a window of it, `WINDOW` or about `WINDOW_TOKENS` tokens, is held in
        memory.
      top_k: how many best alternatives to keep a token.
      work: counts positions and programs, if given.
      on_row: called with the number of requests that a finished row held.

    Raises:
      PromptError: a request is longer than the model takes, or holds an id that it does not know.
        The results of those before it come first.
      ModelError: a request does not fit into the device's memory.
    """
    stream = (_checked(request, model) for request in requests)
    failures: list[Exception] = []

    def compute(batch: Batch) -> TokenScores:
        if work is not None:  # threads call this, but under the lock of `compute_rows`
            work.computed += batch.tokens.size
        if model.mesh is None:
            return _token_scores(model.graphdef, model.params, batch, top_k=top_k)
        options: dict[str, Any] = {"mesh": model.mesh, "rules": model.rules, "top_k": top_k}
        return token_scores_on_mesh(model.graphdef, model.params, batch, **options)

    apart = length_classes(model.config)
    together = model.rows_together
    choose = partial(pack, apart=apart, together=together)
    longest = longest_row(model, top_k=top_k)

    def split(window: _Window, row: PackedRow) -> list[PackedRow]:
        return _split(window, row, choose, work)

    packed = _pack_windows(stream, work, failures, partial(choose, longest=longest))
    with closing(compute_rows(packed, compute, together=together, split=split)) as rows:
        for window, row, scores in rows:
            yield from _collect(window, row, scores, on_row)
    if failures:
        raise failures[0]


class _Window:
    """Requests that are packed together, and what is known of them so far."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self.results: list[ScoredRequest | None] = [None] * len(requests)
        self.missing = len(requests)


def _pack_windows(
    requests: Iterator[Request],
    work: Work | None,
    failures: list[Exception],
    choose: Callable[..., Iterator[PackedRow]],
) -> Iterator[tuple[_Window, PackedRow]]:
    """Rows of one window after the other; what ends the stream early goes to `failures`."""
    while chosen := _take(requests, failures):
        window = _Window(chosen)
        tree = build_tree(chosen)
        if work is not None:
            work.distinct += tree.num_distinct
            work.requested += sum(map(input_length, chosen))
        for row in choose(chosen, tree):
            _count(work, row)
            yield window, row


def _count(work: Work | None, row: PackedRow) -> None:
    if work is not None:
        work.useful += row.num_tokens
        work.programs.add((row.batch.tokens.shape[1], row.batch.tile))


def _split(
    window: _Window,
    row: PackedRow,
    choose: Callable[..., Iterator[PackedRow]],
    work: Work | None,
) -> list[PackedRow]:
    """Two halves of the requests of a row that does not fit into memory, in rows of half its length
    or, where one request needs more, of that."""
    indices = [index for index, _ in row.members]
    length, middle = row.batch.tokens.shape[1], len(indices) // 2
    shorter = [
        dataclasses.replace(part, members=tuple((half[i], entries) for i, entries in part.members))
        for half in (indices[:middle], indices[middle:])
        if middle
        for part in choose([window.requests[i] for i in half], longest=length // 2)
    ]
    for part in shorter:
        _count(work, part)
    return shorter


def _take(requests: Iterator[Request], failures: list[Exception]) -> list[Request]:
    chosen: list[Request] = []
    tokens = 0
    try:
        while not failures and len(chosen) < WINDOW and tokens < WINDOW_TOKENS:
            chosen.append(next(requests))
            tokens += len(chosen[-1].ids)
    except StopIteration:
        pass
    except Exception as error:
        failures.append(error)
    return chosen


def _collect(
    window: _Window,
    row: PackedRow,
    scores: Any,
    on_row: Callable[[int], None] | None,
) -> Iterator[ScoredRequest]:
    """Takes a row's scores apart; gives the requests of its window if it was the last of them."""
    for index, entries in row.members:
        pick = partial(_rows, entries=entries)
        window.results[index] = ScoredRequest(
            request=window.requests[index],
            token_log_probs=pick(scores.log_prob),
            greedy=pick(scores.greedy),
            entropy=pick(scores.entropy),
            rank=pick(scores.rank),
            top_ids=pick(scores.top_ids),
            top_log_probs=pick(scores.top_log_probs),
        )
    window.missing -= len(row.members)
    if on_row is not None:
        on_row(len(row.members))
    if not window.missing:
        yield from (result for result in window.results if result is not None)


def _checked(request: Request, model: Model) -> Request:
    """XLA clamps an index that is out of range, which would score something else."""
    length, config = input_length(request), model.config
    name = f"row {request.row + 1}"
    if length > config.max_positions:
        raise PromptError(
            f"{length} tokens, more than the {config.max_positions} that the model takes",
            row=name,
            remedy="shorten it, or set truncation to left or middle",
        )
    low, high = int(request.ids.min()), int(request.ids.max())
    if low < 0 or high >= config.vocab_size:
        raise PromptError(
            f"token id {low if low < 0 else high} is not one of the model's {config.vocab_size}",
            row=name,
        )
    return request


def _rows(array: np.ndarray, *, entries: np.ndarray) -> np.ndarray:
    return array[0, entries]
