"""Requests as a tree of their ids: what they have in common at the start is computed once.

Requests sorted by their ids are the leaves of that tree in depth-first order, and two neighbours
meet where their common prefix ends. So the tree needs no nodes: an order and the lengths of the
common prefixes say it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instructjax.prompts.request import Request

# A shorter common prefix costs more in attention steps than it saves in tokens.
SHORTEST_SHARED = 16


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """Requests in depth-first order.

    Attributes:
      order: indices of the requests.
      lengths: tokens that each request, in that order, needs computed.
      shared: how many of its first tokens each takes over from the one before it. A branch that
        leaves after fewer than `SHORTEST_SHARED` is computed anew, and counts as its own.
      num_distinct: tokens of the tree, each prefix counted once, however short.
      sizes: what each adds to a row, in positions or scored tokens, whichever is more (a last
        token is scored without a position of its own).
    """

    order: tuple[int, ...]
    lengths: tuple[int, ...]
    shared: tuple[int, ...]
    num_distinct: int
    sizes: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return sum(self.lengths) - sum(self.shared)


def input_length(request: Request) -> int:
    """Tokens that must be computed: all before the last scored one."""
    return request.spans[-1][1] - 1


def common_prefix(a: Request, b: Request) -> int:
    """How many first tokens of b's input are those of a's."""
    size = min(input_length(a), input_length(b))
    different = a.ids[:size] != b.ids[:size]
    return int(different.argmax()) if different.any() else size


def worth_sharing(common: int, length: int) -> int:
    """`common`, or 0 where a branch so early would cost more than it saves.

    A request that ends there begins no branch, and shares at any length.
    """
    return common if common >= SHORTEST_SHARED or common == length else 0


def build_tree(requests: Sequence[Request], members: Iterable[int] | None = None) -> PrefixTree:
    """The tree of a window of requests. Its order depends on their ids alone.

    Args:
      requests: the window.
      members: indices of those to build it of; by default all.

    >>> import numpy as np
    >>> def request(*ids):
    ...     span = (len(ids) - 1, len(ids))
    ...     return Request(ids=np.array(ids, np.int32), spans=(span,), num_bytes=1)
    >>> prompt = tuple(range(20))
    >>> tree = build_tree([request(*prompt, 5, 0), request(7, 7), request(*prompt, 4, 0)])
    >>> tree.order, tree.lengths, tree.shared, tree.num_tokens
    ((2, 0, 1), (21, 21, 1), (0, 20, 0), 23)
    """
    chosen = range(len(requests)) if members is None else members
    keys = {i: requests[i].ids[: input_length(requests[i])].astype(">i4").tobytes() for i in chosen}
    order = sorted(keys, key=lambda i: keys[i])
    lengths = tuple(input_length(requests[i]) for i in order)
    commons = [0] * len(order)
    for place in range(1, len(order)):
        commons[place] = common_prefix(requests[order[place - 1]], requests[order[place]])
    shared = [worth_sharing(n, length) for n, length in zip(commons, lengths, strict=True)]
    sizes = tuple(
        max(length - common, _count_scored(requests[i], common))
        for i, length, common in zip(order, lengths, shared, strict=True)
    )
    return PrefixTree(
        order=tuple(order),
        lengths=lengths,
        shared=tuple(shared),
        num_distinct=sum(lengths) - sum(commons),
        sizes=sizes,
    )


def _count_scored(request: Request, shared: int) -> int:
    return sum(max(stop - max(start, shared), 0) for start, stop in request.spans)


def cut_tree(tree: PrefixTree, limit: int) -> list[tuple[range, int]]:
    """Runs of neighbours whose subtree is at most `limit` in size, each with its size.

    A request that is larger than `limit` is a run of its own, so with 0 each one is.
    """
    runs: list[tuple[range, int]] = []
    start = total = 0
    for place, (length, size) in enumerate(zip(tree.lengths, tree.sizes, strict=True)):
        if place and total + size <= limit:
            total += size
            continue
        if place:
            runs.append((range(start, place), total))
        start, total = place, length
    if tree.lengths:
        runs.append((range(start, len(tree.lengths)), total))
    return runs
