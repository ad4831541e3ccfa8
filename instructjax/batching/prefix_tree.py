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

import numpy as np
from jaxtyping import Int

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


def input_ids(request: Request) -> Int[np.ndarray, " n"]:
    """The tokens that must be computed."""
    return request.ids[: input_length(request)]


def common_prefix(a: Int[np.ndarray, " m"], b: Int[np.ndarray, " n"]) -> int:
    """How many first tokens of b are those of a.

    >>> common_prefix(np.array([5, 6, 7]), np.array([5, 6, 8, 9]))
    2
    """
    size = min(len(a), len(b))
    different = a[:size] != b[:size]
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
    inputs = {i: input_ids(requests[i]) for i in chosen}
    keys = {i: sort_key(ids) for i, ids in inputs.items()}
    order = sorted(keys, key=lambda i: keys[i])
    lengths = tuple(len(inputs[i]) for i in order)
    commons = [0] * len(order)
    for place in range(1, len(order)):
        commons[place] = common_prefix(inputs[order[place - 1]], inputs[order[place]])
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


def sort_key(ids: Int[np.ndarray, " n"]) -> bytes:
    """Sorts as the ids do, and is compared faster."""
    return ids.astype(">i4").tobytes()


class SortedIds:
    """Token ids in depth-first order, as they come and go.

    Attributes:
      ids: of each, in that order.
      commons: tokens that each has in common with the one before it, and 0 behind the last.

    >>> tree = SortedIds()
    >>> [tree.insert(np.array(ids)) for ids in ([5, 6, 7], [9], [5, 6, 8], [5, 6, 7])]
    [0, 1, 1, 1]
    >>> tree.commons
    [0, 3, 2, 0, 0]
    >>> tree.pop(1)
    >>> tree.commons
    [0, 2, 0, 0]
    """

    def __init__(self) -> None:
        self.ids: list[Int[np.ndarray, " n"]] = []
        self.commons = [0]
        self._keys: list[bytes] = []

    def insert(self, ids: Int[np.ndarray, " n"]) -> int:
        """Takes ids in, behind those that are the same, and returns their place."""
        key = sort_key(ids)
        at = bisect(self._keys, key)
        left = common_prefix(self.ids[at - 1], ids) if at else 0
        right = common_prefix(ids, self.ids[at]) if at < len(self.ids) else 0
        self.commons[at : at + 1] = [left, right]
        self._keys.insert(at, key)
        self.ids.insert(at, ids)
        return at

    def pop(self, at: int) -> None:
        """Lets go of the ids at a place."""
        self.commons[at : at + 2] = [min(self.commons[at : at + 2])]
        del self._keys[at], self.ids[at]


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
        self._sorted = SortedIds()

    def add(self, request: Request) -> None:
        """Counts one more request."""
        at, commons = self._sorted.insert(input_ids(request)), self._sorted.commons
        left, right = commons[at : at + 2]
        self.num_distinct += input_length(request) - max(left, right)
        # What neighbours have in common are prefixes in depth-first order too, and two of these
        # that follow each other have the shorter one in common.
        before = commons[at - 1] if at else 0
        after = commons[at + 2] if at + 2 < len(commons) else 0
        without = before, min(left, right), after
        self.num_shared += _sum_new(before, left, right, after) - _sum_new(*without)


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
