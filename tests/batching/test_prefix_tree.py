"""The tree that grows: its two counts beside every prefix written out."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instructjax.batching.prefix_tree import GrowingTree
from instructjax.prompts.request import Request

SEQUENCES = st.lists(st.integers(0, 2), min_size=2, max_size=12)


@given(st.lists(SEQUENCES, max_size=25))
def test_a_growing_tree_counts_what_a_set_of_prefixes_counts(sequences):
    tree = GrowingTree()
    begun = Counter()
    for ids in sequences:
        span = (len(ids) - 1, len(ids))
        tree.add(Request(ids=np.array(ids, np.int32), spans=(span,), num_bytes=1))
        # the last token is predicted and has no position
        begun.update(tuple(ids[:n]) for n in range(1, len(ids)))
        assert tree.num_distinct == len(begun)
        assert tree.num_shared == sum(count > 1 for count in begun.values())
