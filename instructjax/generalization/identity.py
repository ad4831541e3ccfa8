"""Hashes of texts (`data.text_hash`) as numbers: to group by, and to shuffle by."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def to_key(hash: str) -> int:
    """The first 64 bits of a hash, to group by in arrays.

    >>> to_key("e3b0c44298fc1c149afbf4c8996fb924") == 0xE3B0C44298FC1C14
    True
    """
    return int(hash[:16], 16)


def mix(values: UInt64[np.ndarray, " n"], seed: int = 0) -> UInt64[np.ndarray, " n"]:
    """Scrambles 64-bit numbers one to one (SplitMix64; Steele, Lea and Flood 2014).

    Sorting keys by their mixed values is a shuffle that depends on the seed and on the keys, not
    on the order in which they came.

    >>> int(mix(np.array([0], np.uint64))[0]) == 0xE220A8397B1DCDAF
    True
    """
    with np.errstate(over="ignore"):
        x = values + np.uint64((seed + 1) * _GOLDEN & _MASK)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
