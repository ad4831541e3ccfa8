"""How many more instructions would make an interval half as wide."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

LIMIT = 10_000


def clusters_to_halve(
    variance: float,
    variance_of_way: float,
    clusters: int | float,
    df: float,
    *,
    level: float = 0.95,
    factor: float = 0.5,
) -> int | None:
    """The fewest more clusters with which an interval is half as wide; None if 10,000 are too few.

    With m more clusters, `variance_of_way` x G / (G + m) stands for `variance_of_way`, the rest of
    the variance stays, and Student's t has Satterthwaite's degrees of freedom, V^2 / sum (V_b^2 /
    df_b), in which the way has G + m - 1 and what is left stays as it is.

    Args:
      variance: of the estimate.
      variance_of_way: the part that more clusters make smaller.
      clusters: G, how many there are, 2 or more.
      df: of the estimate.
      level: of the interval.
      factor: how wide the interval may be, relative to now.

    >>> clusters_to_halve(1.0, 1.0, 8, 7.0)  # 2.365 / sqrt(8) is halved by 2.064 / sqrt(8 + 17)
    17
    >>> clusters_to_halve(1.0, 0.5, 8, 14.0)
    """
    more = np.arange(LIMIT + 1)
    total = clusters + more
    of_way = variance_of_way * clusters / total
    left = variance - variance_of_way + of_way
    others = max(variance**2 / df - variance_of_way**2 / (clusters - 1), 0.0)
    half = stdtrit(left**2 / (others + of_way**2 / (total - 1)), (1 + level) / 2) * np.sqrt(left)
    enough = half <= factor * half[0]
    return int(enough.argmax()) if enough.any() else None
