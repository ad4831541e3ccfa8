"""How many more instructions would make an interval half as wide."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

LIMIT = 10_000


def clusters_to_halve(
    variance: float,
    variance_of_way: float,
    clusters: int,
    other_df: float,
    *,
    level: float = 0.95,
    factor: float = 0.5,
) -> int | None:
    """The fewest more clusters with which an interval is half as wide; None if 10,000 are too few.

    With m more clusters, `variance_of_way` x G / (G + m) stands for `variance_of_way`, and
    Student's t has min(G + m - 1, other_df) degrees of freedom; the rest of the variance stays.

    Args:
      variance: of the estimate.
      variance_of_way: the part that more clusters make smaller.
      clusters: G, how many there are, 2 or more.
      other_df: what the other clusters allow.
      level: of the interval.
      factor: how wide the interval may be, relative to now.

    >>> clusters_to_halve(1.0, 1.0, 8, 99.0)  # 2.365 / sqrt(8) is halved by 2.064 / sqrt(8 + 17)
    17
    >>> clusters_to_halve(1.0, 0.5, 8, 99.0)
    """
    more = np.arange(LIMIT + 1)
    total = clusters + more
    left = variance - variance_of_way + variance_of_way * clusters / total
    half = stdtrit(np.minimum(total - 1, other_df), (1 + level) / 2) * np.sqrt(left)
    enough = half <= factor * half[0]
    return int(enough.argmax()) if enough.any() else None
