r"""How far a mean can be off where (nearly) all scores of a cell are the same.

Scores that do not vary have a standard error of 0, which says nothing. That no draw of G differs
from v does: if a share p of all did, this had probability \((1-p)^G\), so p is at most
\(1 - a^{1/G}\) but for a probability a (near 3 / G for a = 0.05: the "rule of three", Hanley and
Lippman-Hand 1983). Where x of G differ, p is at most the a-quantile from above of
Beta(x + 1, G - x) (Clopper and Pearson 1934, one-sided). For scores from lo to hi the mean is then
within \([v - p (v - lo), v + p (hi - v)]\).

Draws are clusters, since scores of one instruction are not independent: of a grid of G
instructions by at least G inputs, G scores with no c or z in common are independent draws. So G is
the number of clusters in the way that has fewest. A contrast of k cells takes a = (1 - level) / k
for each (Bonferroni).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.special import betaincinv

# With more clusters that differ, their spread tells.
MOST = 1


def bound_half_width(
    row: Float64[np.ndarray, " 4"],
    values: Float64[np.ndarray, " N"],
    belongs: Bool[np.ndarray, "N 4"],
    ways: list[Int[np.ndarray, " N"]],
    seen: Bool[np.ndarray, "W 4"],
    *,
    bounds: tuple[float, float],
    level: float,
) -> float | None:
    """Half the width of an interval of a contrast that holds however rare deviations are.

    Args:
      row: the contrast of cell means.
      values: the scores.
      belongs: which cell each is in.
      ways: ids of the clusters, a list a way.
      seen: whether the clusters of a way are seen ones in a cell; a single seen one is given.
      bounds: the lowest and the highest score there can be.
      level: of the interval.

    Returns:
      None where scores of a cell of the contrast differ in more than one cluster of a way.

    >>> values, belongs = np.repeat([1.0, 0.0], 20), np.repeat(np.eye(4, dtype=bool)[[0, 2]], 20, 0)
    >>> half = bound_half_width(np.array([1.0, 0, -1, 0]), values, belongs, [np.arange(40)],
    ...                         np.zeros((1, 4), bool), bounds=(0.0, 1.0), level=0.95)
    >>> round(half, 3), round(2 * (1 - 0.025 ** (1 / 20)), 3)
    (0.337, 0.337)
    """
    cells = np.flatnonzero(row)
    tail = (1 - level) / len(cells)
    below = above = 0.0
    for k in cells.tolist():
        mine = values[belongs[:, k]]
        kinds, count = np.unique(mine, return_counts=True)
        usual = float(kinds[count.argmax()])
        shares = []
        for way, is_seen in zip(ways, seen, strict=True):
            ids = way[belongs[:, k]]
            clusters, differ = len(np.unique(ids)), len(np.unique(ids[mine != usual]))
            if clusters == 1 and is_seen[k]:
                continue
            if differ > MOST or differ == clusters:
                return None
            shares.append(float(betaincinv(differ + 1, clusters - differ, 1 - tail)))
        if not shares:
            return None
        down, up = (max(shares) * abs(usual - end) for end in bounds)
        down, up = (down, up) if row[k] > 0 else (up, down)
        below, above = below + abs(row[k]) * down, above + abs(row[k]) * up
    half = float(max(below, above))
    return half if math.isfinite(half) else None
