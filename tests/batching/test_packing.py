"""Packing: every request once, whole, apart from the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batching.packing import (
    LARGE_COST,
    LARGE_TILE,
    ROW_LENGTHS,
    SMALL_TILE,
    choose_tile,
    input_length,
    pack,
    row_length_for,
)
from instructjax.prompts.request import Request


def request(length, spans=None, seed=0):
    ids = np.random.default_rng([seed, length]).integers(0, 1000, length, dtype=np.int32)
    return Request(ids=ids, spans=spans or ((max(1, length // 2), length),), num_bytes=length)


@st.composite
def lengths_and_spans(draw):
    drawn = []
    for _ in range(draw(st.integers(1, 25))):
        length = draw(st.one_of(st.integers(2, 40), st.integers(41, 3000)))
        cuts = draw(st.lists(st.integers(1, length), min_size=2, max_size=6, unique=True))
        cuts = sorted(cuts)[: len(cuts) // 2 * 2]
        drawn.append((length, tuple(zip(cuts[::2], cuts[1::2], strict=True))))
    return drawn


def make(drawn):
    return [request(length, spans, seed) for seed, (length, spans) in enumerate(drawn)]


def unpack(row):
    """(request, ids, positions, scored (source, target) pairs), read from the arrays alone."""
    batch = row.batch
    tokens, positions, ends, sources, targets = (
        np.asarray(x)[0]
        for x in (batch.tokens, batch.positions, batch.ends, batch.sources, batch.targets)
    )
    start = 0
    for index, first, last in row.members:
        stop = int(ends[start])
        assert np.all(ends[start:stop] == stop)
        pairs = list(
            zip((sources[first:last] - start).tolist(), targets[first:last].tolist(), strict=True)
        )
        yield index, tokens[start:stop], positions[start:stop], pairs
        start = stop
    assert start == row.num_tokens
    assert not ends[start:].any()


@settings(max_examples=60)
@given(lengths_and_spans())
def test_every_request_is_placed_once_whole_and_apart(drawn):
    made = make(drawn)
    seen = []
    for row in pack(made):
        length = row.batch.tokens.shape[1]
        assert length == row_length_for(row.num_tokens) and row.num_tokens <= length
        entries = 0
        for index, ids, positions, pairs in unpack(row):
            wanted = made[index]
            np.testing.assert_array_equal(ids, wanted.ids[: wanted.spans[-1][1] - 1])
            np.testing.assert_array_equal(positions, np.arange(len(ids)))
            scored = [t for a, b in wanted.spans for t in range(a, b)]
            assert pairs == [(t - 1, int(wanted.ids[t])) for t in scored]
            entries += len(pairs)
            seen.append(index)
        assert row.batch.num_scored.tolist() == [entries]
    assert sorted(seen) == list(range(len(made)))


@settings(max_examples=30)
@given(lengths_and_spans())
def test_rows_come_in_few_shapes(drawn):
    made = make(drawn)
    for row in pack(made):
        assert row.batch.tokens.shape == (1, row_length_for(row.num_tokens))
        assert row.batch.tokens.shape[1] in (*ROW_LENGTHS, 4096)
        assert row.batch.tile in (SMALL_TILE, LARGE_TILE)


def test_the_tile_chosen_is_the_one_whose_steps_cost_less():
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(40):
        lengths = rng.integers(1, rng.integers(2, 3000), 5).tolist()

        def steps(tile, lengths=lengths):
            return sum(
                1 for n in lengths for q in range(0, n, tile) for k in range(0, n, tile) if k <= q
            )

        cheaper = steps(SMALL_TILE) <= LARGE_COST * steps(LARGE_TILE)
        assert choose_tile(lengths) == (SMALL_TILE if cheaper else LARGE_TILE)
        chosen.add(choose_tile(lengths))
    assert chosen == {SMALL_TILE, LARGE_TILE}


def test_packing_is_the_same_each_time():
    made = [request(n, seed=n) for n in (5, 900, 5, 77, 1300, 2, 600)]
    first, second = ([row.members for row in pack(made)] for _ in range(2))
    assert first == second


def test_many_short_requests_fill_rows():
    made = [request(2 + n * 37 % 180, seed=n) for n in range(400)]
    rows = list(pack(made))
    useful = sum(row.num_tokens for row in rows)
    assert useful == sum(len(r.ids) - 1 for r in made)
    assert useful / sum(row.batch.tokens.size for row in rows) > 0.95


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(2049, [2048, 128]), (2050, [4096]), (4097, [4096, 128]), (5000, [8192])],
)
def test_a_request_longer_than_every_listed_row_gets_one_that_holds_it(length, sizes):
    rows = list(pack([request(30), request(length)]))
    assert [row.batch.tokens.shape[1] for row in rows] == sizes
    assert sorted(index for row in rows for index, _, _ in row.members) == [0, 1]


def test_only_what_the_last_scored_token_needs_is_computed():
    cut = request(100, ((3, 5), (8, 11)))
    (row,) = pack([cut])
    assert input_length(cut) == row.num_tokens == 10


def test_a_request_of_two_tokens_needs_one_position():
    (row,) = pack([request(2, ((1, 2),))])
    assert row.num_tokens == 1 and row.batch.tokens.shape == (1, 128)
    assert row.batch.ends[0, :3].tolist() == [1, 0, 0]


def test_nothing_to_pack_gives_no_rows():
    assert list(pack([])) == []
