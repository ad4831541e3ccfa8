"""Requests as a tree of their ids: what they have in common at the start is computed once.

Requests sorted by their ids are the leaves of that tree in depth-first order, and two neighbours
meet where their common prefix ends. So the tree needs no nodes: an order and the lengths of the
common prefixes say it all.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from instructjax.prompts.request import Request

# One token in common, as BOS is of all requests, saves no time that could be measured. From two on
# a prefix takes no longer shared than computed anew, and many branches of a short one much less.
SHORTEST_SHARED = 2


@dataclass(frozen=True, kw_only=True)
class PrefixTree:
    """Requests in depth-first order.

    Attributes:
      order: indices of the requests.
      lengths: tokens that each request, in that order, needs computed.
      shared: how many of its first tokens each takes over from the one before it. A branch that
        leaves after fewer than `SHORTEST_SHARED` is computed anew, and counts as its own.
      num_distinct: tokens of the tree, each prefix counted once, however short.
      sizes: what each adds to a row at most, in positions or scored tokens, whichever is more (a
        last token is scored without a position of its own).
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
    keys = {i: _sort_key(requests[i]) for i in chosen}
    order = sorted(keys, key=lambda i: keys[i])
    lengths = tuple(input_length(requests[i]) for i in order)
    commons = [0] * len(order)
    for place in range(1, len(order)):
        commons[place] = common_prefix(requests[order[place - 1]], requests[order[place]])
    shared = [worth_sharing(n, length) for n, length in zip(commons, lengths, strict=True)]
    # Any of its positions may be scored, by a later request too, but the first of a row.
    sizes = tuple(n - common + (common > 0) for n, common in zip(lengths, shared, strict=True))
    return PrefixTree(
        order=tuple(order),
        lengths=lengths,
        shared=tuple(shared),
        num_distinct=sum(lengths) - sum(commons),
        sizes=sizes,
    )


def _sort_key(request: Request) -> bytes:
    """Sorts as the ids do, and is compared faster."""
    return request.ids[: input_length(request)].astype(">i4").tobytes()


class GrowingTree:
    """Counts the tokens of a tree to which requests are added in any order.

    Attributes:
      num_distinct: tokens of the tree, each prefix counted once.
      num_shared: those of them that two requests or more begin with.

    >>> import numpy as np
    >>> tree = GrowingTree()
    >>> for ids in [5, 6, 7, 0], [9, 0], [5, 6, 8, 8, 0]:
    ...     span = (len(ids) - 1, len(ids))
    ...     tree.add(Request(ids=np.array(ids, np.int32), spans=(span,), num_bytes=1))
    >>> tree.num_distinct, tree.num_shared
    (6, 2)
    """

    def __init__(self) -> None:
        self.num_distinct = self.num_shared = 0
        self._keys: list[bytes] = []
        self._requests: list[Request] = []  # in the order of the keys
        self._commons: list[int] = [0]  # of each with the one before it, and 0 behind the last

    def add(self, request: Request) -> None:
        """Counts one more request."""
        key = _sort_key(request)
        at = bisect(self._keys, key)
        left = common_prefix(self._requests[at - 1], request) if at else 0
        right = common_prefix(request, self._requests[at]) if at < len(self._keys) else 0
        self.num_distinct += input_length(request) - max(left, right)
        # What neighbours have in common are prefixes in depth-first order too, and two of these
        # that follow each other have the shorter one in common.
        commons = self._commons
        before, old = (commons[at - 1] if at else 0), commons[at]
        after = commons[at + 1] if at + 1 < len(commons) else 0
        self.num_shared += _sum_new(before, left, right, after) - _sum_new(before, old, after)
        commons[at : at + 1] = [left, right]
        self._keys.insert(at, key)
        self._requests.insert(at, request)


def _sum_new(*lengths: int) -> int:
    """Lengths of prefixes that follow each other, less what each has of the one before it."""
    return sum(lengths) - sum(min(a, b) for a, b in pairwise(lengths))


def cut_tree(tree: PrefixTree, limit: Callable[[int], int]) -> list[tuple[range, int]]:
    """Runs of neighbours whose subtree is within a limit, each with its size.

    Args:
      tree: what is cut.
      limit: size of a run whose first request needs so many tokens. One that needs more is a run
        of its own.
    """
    runs: list[tuple[range, int]] = []
    start = total = 0
    for place, (length, size) in enumerate(zip(tree.lengths, tree.sizes, strict=True)):
        if place and total + size <= limit(tree.lengths[start]):
            total += size
            continue
        if place:
            runs.append((range(start, place), total))
        start, total = place, length
    if tree.lengths:
        runs.append((range(start, len(tree.lengths)), total))
    return runs
