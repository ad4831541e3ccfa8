"""Which of many keys occur among the training texts, and in which of them first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64

_BLOOM_BITS = 27


class FirstOwners:
    """Sorted distinct keys, and the lowest number of a text that has each; -1 where none has.

    Memory is that of the keys, however many texts are shown; at most 2^31 - 1 of them.

    >>> owners = FirstOwners(np.array([5, 3, 5], np.uint64))
    >>> owners.show(np.array([3, 9, 3], np.uint64), np.array([8, 8, 7]))
    >>> owners.look_up(np.array([5, 3], np.uint64)).tolist()
    [-1, 7]
    """

    def __init__(self, keys: UInt64[np.ndarray, " K"]) -> None:
        self.keys = np.unique(keys)
        self.first = np.full(len(self.keys), np.iinfo(np.int32).max, np.int32)
        # Most keys of training texts are none of these: a table of bits says so without a search.
        bits = min(_BLOOM_BITS, max(10, len(self.keys).bit_length() + 4))
        self._mask = np.uint64((1 << bits) - 1)
        self._bloom = np.zeros(1 << bits, bool)
        self._bloom[(self.keys & self._mask).astype(np.int64)] = True

    def show(self, keys: UInt64[np.ndarray, " n"], owners: Int[np.ndarray, " n"]) -> None:
        """Takes keys of training texts, and the number of the text that each is from."""
        maybe = np.flatnonzero(self._bloom[(keys & self._mask).astype(np.int64)])
        keys, owners = keys[maybe], owners[maybe]
        place = np.searchsorted(self.keys, keys)
        place[place == len(self.keys)] = 0
        found = self.keys[place] == keys if len(self.keys) else np.zeros(len(keys), bool)
        np.minimum.at(self.first, place[found], owners[found].astype(np.int32))

    def look_up(self, keys: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The first owner of each of the keys that this was made of."""
        first = self.first[np.searchsorted(self.keys, keys)]
        return np.where(first == np.iinfo(np.int32).max, -1, first).astype(int)
