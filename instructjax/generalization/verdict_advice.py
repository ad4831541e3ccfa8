"""How many more instructions, inputs or tasks would make an interval half as wide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from instructjax.generalization.measure import Measured
from instructjax.generalization.planning import LIMIT, clusters_to_halve

How = Literal["unseen", "both sides", "in proportion", "times", "one", "unknown"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """What would halve an interval.

    Attributes:
      unit: of what there is too little, the plural: that which the interval's width comes from.
      how: `more` of them unseen; on "both sides", where seen and unseen have the same; unseen ones
        with seen ones "in proportion"; `more` "times" as many of everything; "one": there is only
        one unseen, and no interval; "unknown": more than 10,000, or they are too few to tell.
      more: the number; None for "one" and "unknown".
    """

    unit: str
    how: How
    more: int | float | None = None

    def say(self, *, with_unit: bool = False) -> str:
        """A clause for a sentence.

        >>> Needed(unit="tasks", how="unseen", more=8).say(with_unit=True)
        '8 more unseen tasks would halve the interval'
        >>> Needed(unit="inputs", how="in proportion", more=24).say()
        '24 more unseen, and seen ones in proportion, would halve the interval'
        """
        of = f" {self.unit}" if with_unit else ""
        then = "would halve the interval"
        return {
            "unseen": f"{self.more or 0:,} more unseen{of} {then}",
            "both sides": f"{self.more or 0:,} more{of} {then}",
            "in proportion": f"{self.more or 0:,} more unseen{of}, and seen ones in proportion, "
            f"{then}",
            "times": f"{self.more or 0:.1f} times as many of all, seen and unseen, {then}",
            "one": f"only one{of and ' of the' + of} is unseen",
            "unknown": f"how many more{of} would do cannot be told",
        }[self.how]


def find_needed(
    row: Float64[np.ndarray, " 4"],
    measured: Measured,
    ways: list[Int[np.ndarray, " N"]],
    seen: Bool[np.ndarray, "W 4"],
    units: list[str],
    *,
    variance: float,
    df: float,
    level: float,
) -> Needed:
    """What would halve the interval of a contrast.

    More of the way that the variance comes from most are tried: unseen ones alone; with seen ones
    in proportion; more of all ways.

    Args:
      row: the contrast of cell means.
      measured: their covariance.
      ways: ids of the clusters, a list a way, and whether the clusters of a cell are `seen` ones.
      units: what the clusters of each way are called.
      variance, df: of the contrast.
      level: of the interval.
    """
    enters = row != 0
    unseen = [~way & enters if (~way & enters).any() else enters for way in seen]
    counts = measured.covariance.clusters
    fewest = [int(counts[w][some].min()) for w, some in enumerate(unseen)]
    if df <= 0:
        # One seen cluster is given, and limits nothing.
        limits = [n if (~seen[w] & enters).any() or n > 1 else LIMIT for w, n in enumerate(fewest)]
        way = int(np.argmin(limits))
        return Needed(unit=units[way], how="one" if limits[way] == 1 else "unknown")
    single = [float(row @ one @ row) for one in measured.covariance.single]
    way = int(np.argmax(single))
    unit, clusters, some = units[way], fewest[way], unseen[way]
    if clusters < 2:
        return Needed(unit=unit, how="one")
    sets = [set(ways[way][measured.belongs[:, k]].tolist()) for k in np.flatnonzero(enters)]
    shared = bool(set.intersection(*sets)) if len(sets) > 1 else False
    # The same clusters on both sides: more of them are more on both.
    part = row if shared else row * some
    of_way = min(float(part @ measured.covariance.single[way] @ part), variance)
    together = shared or not (~seen[way] & enters).any()  # no unseen ones of them are in it
    # Uneven clusters count as fewer equal ones; more of them are as uneven.
    equal = 1 + float(measured.covariance.df[way][some].min())
    more = clusters_to_halve(variance, of_way, equal, df, level=level)
    if more is not None:
        more = math.ceil(more * clusters / equal - 1e-6)
        return Needed(unit=unit, how="both sides" if together else "unseen", more=more)
    # Both sides grow alike: as if the way had so many clusters as give the degrees of freedom.
    of_way = min(single[way], variance)
    as_if = 1 + df * (of_way / variance) ** 2
    more = clusters_to_halve(variance, of_way, as_if, df, level=level)
    if more is not None:
        how = "both sides" if together else "in proportion"
        return Needed(unit=unit, how=how, more=math.ceil(more * clusters / as_if))
    more = clusters_to_halve(variance, variance, 1 + df, df, level=level)
    if more is None:
        return Needed(unit=unit, how="unknown")
    return Needed(unit=unit, how="times", more=1 + more / (1 + df))
