"""The order of sequences: shuffled by seed and epoch, mixed by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import grain
import numpy as np

# Indices are cheap to make; threads for them would only wait for each other.
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def order_indices(
    sizes: Sequence[int],
    *,
    weights: Sequence[float] = (),
    seed: int = 0,
    epochs: int | float | None = None,
) -> grain.IterDataset:
    """Indices of sequences, as an iterable whose iterators can be stored and go on.

    Without weights each epoch holds every sequence once, in an order of its own. With them, each
    data set is run through again and again at its own pace, and an epoch is as many sequences as
    there are. The order depends on the seed alone.

    Args:
      sizes: how many sequences each data set has; indices count through all of them.
      weights: how often each data set is drawn from, in ratio.
      seed: of the order.
      epochs: how often to go through them; None for endlessly.

    >>> sorted(order_indices([3, 2], epochs=1))
    [0, 1, 2, 3, 4]
    """
    total = sum(sizes)
    if weights:
        bounds = np.cumsum([0, *sizes])
        parts = [
            _shuffle(int(bounds[k]), int(bounds[k + 1]), seed, k).repeat()
            for k in range(len(sizes))
        ]
        endless = grain.MapDataset.mix(parts, list(weights))
    else:
        endless = _shuffle(0, total, seed, 0).repeat()
    stop = None if epochs is None else max(math.ceil(epochs * total - 1e-9), 1)
    return endless[slice(stop)].to_iter_dataset(_READ)


def _shuffle(start: int, stop: int, seed: int, number: int) -> grain.MapDataset:
    # Its seed rises by one an epoch, so that of neighbouring runs must not be neighbours.
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return grain.MapDataset.range(start, stop).shuffle(seed=mixed)
