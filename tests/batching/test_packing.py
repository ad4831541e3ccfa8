"""Packing: every request once, whole, apart from the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.batching.packing import (
    LARGE_TILE,
    LONG,
    LONG_ROWS,
    ROW_LENGTHS,
    SMALL_TILE,
    pack,
    row_length_for,
)
from instructjax.batching.prefix_tree import build_tree, input_length
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


def branch(parents, place):
    """A sequence's places in the row, from its first token to `place`, followed upwards."""
    path = [place]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def read_row(row):
    """(request, ids before each scored token, that token) of every entry, from the arrays alone.

    A token's parent is the deepest token before it that still sees it: the visibility rule says
    which, and positions must count the ancestors.
    """
    batch = row.batch
    tokens, positions, ends, sources, targets = (
        np.asarray(x)[0].tolist()
        for x in (batch.tokens, batch.positions, batch.ends, batch.sources, batch.targets)
    )
    parents = []
    for place in range(row.num_tokens):
        seen = [k for k in range(place) if ends[k] > place]
        assert positions[place] == len(seen)
        parents.append(seen[-1] if seen else -1)
        assert not seen or parents[seen[-1]] == (seen[-2] if len(seen) > 1 else -1)
    assert not any(ends[row.num_tokens :])
    for index, entries in row.members:
        yield (
            index,
            [
                ([tokens[k] for k in branch(parents, sources[e])], targets[e])
                for e in entries.tolist()
            ],
        )


def check_rows(made, rows):
    seen = []
    for row in rows:
        entries = [e for _, found in row.members for e in found.tolist()]
        assert set(entries) == set(range(int(row.batch.num_scored[0])))
        for index, found in read_row(row):
            ids = made[index].ids.tolist()
            wanted = [(ids[:t], ids[t]) for a, b in made[index].spans for t in range(a, b)]
            assert found == wanted
            seen.append(index)
    assert sorted(seen) == list(range(len(made)))


@settings(max_examples=15)
@given(lengths_and_spans())
def test_every_request_is_placed_once_whole_and_apart(drawn):
    made = make(drawn)
    check_rows(made, pack(made))


@st.composite
def trees(draw):
    """Requests that share prefixes of all lengths, repeat each other, and score any spans."""
    made = []
    stems = [[]]
    for _ in range(draw(st.integers(1, 14))):
        stem = draw(st.sampled_from(stems))
        stem = stem[: draw(st.integers(0, len(stem)))]
        own = draw(st.lists(st.integers(0, 2), min_size=0, max_size=60))
        ids = [*stem, *own]
        if len(ids) < 2:
            continue
        stems.append(ids)
        cuts = draw(st.lists(st.integers(1, len(ids)), min_size=2, max_size=4, unique=True))
        cuts = sorted(cuts)[: len(cuts) // 2 * 2]
        spans = tuple(zip(cuts[::2], cuts[1::2], strict=True))
        made.append((ids, spans))
    return made


def build(drawn):
    return [Request(ids=np.array(ids, np.int32), spans=s, num_bytes=1) for ids, s in drawn]


@settings(max_examples=100)
@given(trees())
def test_law_5_a_tree_of_requests_keeps_every_path(drawn):
    made = build(drawn)
    check_rows(made, pack(made))


@settings(max_examples=50)
@given(trees(), st.integers(0, 99))
def test_rows_do_not_depend_on_the_order_of_different_requests(drawn, seed):
    made = list({r.ids.tobytes(): r for r in build(drawn)}.values())
    shuffled = [made[i] for i in np.random.default_rng(seed).permutation(len(made))]
    first, second = (
        [np.asarray(row.batch.tokens).tolist() for row in pack(x)] for x in (made, shuffled)
    )
    assert first == second


def make_choices(prompts, prompt_length, choices, choice_length, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(prompts):
        prompt = rng.integers(0, 50_000, prompt_length)
        for _ in range(choices):
            ids = np.concatenate([prompt, rng.integers(0, 50_000, choice_length)])
            span = (prompt_length, len(ids))
            made.append(Request(ids=ids.astype(np.int32), spans=(span,), num_bytes=1))
    return made


def test_eight_candidates_of_a_long_prompt_cost_little_more_than_their_tree():
    made = make_choices(24, 400, 8, 6)
    distinct = 24 * (400 + 8 * 5)
    computed = sum(row.batch.tokens.size for row in pack(made))
    assert computed <= 1.1 * distinct


def test_one_token_choices_need_no_positions_and_fit_the_entries_of_a_row():
    made = make_choices(60, 20, 50, 1)
    rows = list(pack(made))
    check_rows(made, rows)
    assert 60 * 20 <= sum(row.num_tokens for row in rows) < (60 + len(rows)) * 20
    for row in rows:
        assert int(row.batch.num_scored[0]) <= row.batch.tokens.shape[1]


def test_requests_that_begin_no_branch_share_at_any_length_and_short_branches_are_counted():
    prompt = np.arange(11, dtype=np.int32)
    same = [Request(ids=prompt, spans=((10, 11),), num_bytes=1) for _ in range(300)]
    assert sum(row.num_tokens for row in pack(same)) == 10
    fork = [
        Request(ids=np.array([1, n, 0], np.int32), spans=((2, 3),), num_bytes=1)
        for n in range(20, 40)
    ]
    tree = build_tree(fork)
    assert (tree.num_distinct, tree.num_tokens) == (1 + 20, 2 * 20)
    assert sum(row.num_tokens for row in pack(fork)) == tree.num_tokens


@pytest.mark.parametrize("prompt", [2, 5, 10, 15])
def test_candidates_of_a_short_prompt_cost_their_distinct_tokens(prompt):
    made = make_choices(100, prompt, 10, 4)
    rows = list(pack(made))
    check_rows(made, rows)
    distinct = 100 * (prompt + 10 * 3)
    assert distinct <= sum(row.num_tokens for row in rows) <= 1.02 * distinct
    # 40 tokens are scored a prompt, more than it has positions if it is short.
    filled = max(distinct, 100 * 40)
    assert sum(row.batch.tokens.size for row in rows) <= 1.1 * filled + ROW_LENGTHS[1]


@pytest.mark.parametrize(("prefix", "longest"), [(400, 128), (1100, 1024), (9500, 9000)])
def test_a_row_that_one_request_needs_anyway_is_shared_whatever_the_bound(prefix, longest):
    made = make_choices(1, prefix, 8, 6)
    (row,) = pack(made, longest=longest)
    check_rows(made, [row])
    assert row.num_tokens == prefix + 8 * 5
    assert row.batch.tokens.size == row_length_for(prefix + 5)


def test_no_row_is_longer_than_its_bound_where_prefixes_are_scored_late():
    rng = np.random.default_rng(5)
    chain = rng.integers(0, 500, 1900, dtype=np.int32)

    def nested(length):
        ids = np.append(chain[:length], np.int32(rng.integers(500, 999)))
        return Request(ids=ids, spans=((length, length + 1),), num_bytes=1)

    made = [nested(length) for length in range(1000, 1900)]
    made.append(Request(ids=chain, spans=((1, 1900),), num_bytes=1))
    rows = list(pack(made, longest=2048))
    assert sum(int(row.batch.num_scored[0]) for row in rows) >= 900 + 1899
    assert max(row.batch.tokens.shape[1] for row in rows) <= 2048


def test_an_instruction_shared_by_a_whole_window_is_seldom_repeated():
    instruction = np.random.default_rng(1).integers(0, 50_000, 500)
    made = []
    for one in make_choices(200, 40, 10, 4, seed=2):
        ids = np.concatenate([instruction, one.ids]).astype(np.int32)
        made.append(Request(ids=ids, spans=((540, 544),), num_bytes=1))
    rows = list(pack(made))
    distinct = 500 + 200 * (40 + 10 * 3)
    assert sum(row.num_tokens for row in rows) <= 1.15 * distinct


@pytest.mark.parametrize(
    ("prefix", "requests", "own"),
    [
        *((prefix, 200, 100) for prefix in (300, 1000, 2000, 3000, 5000, 5500, 6150, 7000, 12_000)),
        *((3000, 50, 300), (300, 300, 30), (33_000, 40, 60)),
    ],
)
def test_rows_grow_with_the_prefix_that_they_share(prefix, requests, own):
    made = make_choices(1, prefix, requests, own + 1)
    rows = list(pack(made))
    assert sorted(index for row in rows for index, _ in row.members) == list(range(requests))
    distinct = prefix + requests * own
    assert sum(row.num_tokens for row in rows) <= 1.25 * distinct
    assert sum(row.batch.tokens.size for row in rows) <= 1.4 * distinct


def test_there_are_rows_for_every_device():
    made = make_choices(1, 1000, 300, 61)
    assert max(row.batch.tokens.shape[1] for row in pack(made)) > ROW_LENGTHS[-1]
    rows = list(pack(made, together=8))
    assert {row.batch.tokens.shape[1] for row in rows} <= set(ROW_LENGTHS) and len(rows) >= 8


@settings(max_examples=15)
@given(lengths_and_spans())
def test_rows_come_in_few_shapes(drawn):
    made = make(drawn)
    for row in pack(made):
        assert row.batch.tokens.shape[1] in (*ROW_LENGTHS, 3072, 6144, *LONG_ROWS)
        assert row.batch.tile in (SMALL_TILE, LARGE_TILE)


def test_the_tile_of_a_request_is_its_own_and_not_its_neighbours():
    stem = np.random.default_rng(2).integers(0, 1000, 500)
    made = []
    for own in (5, 30, 300, 7, 900):
        ids = np.concatenate([stem, np.arange(own)]).astype(np.int32)
        made.append(Request(ids=ids, spans=((500, len(ids)),), num_bytes=1))
    rows = list(pack(made))
    check_rows(made, rows)
    for row in rows:
        for index, _ in row.members:
            assert row.batch.tile == (
                SMALL_TILE if input_length(made[index]) <= LONG else LARGE_TILE
            )
    assert {row.batch.tile for row in rows} == {SMALL_TILE, LARGE_TILE}


def test_packing_is_the_same_each_time():
    made = [request(n, seed=n) for n in (5, 900, 5, 77, 1300, 2, 600)]
    first, second = (
        [[(i, found.tolist()) for i, found in row.members] for row in pack(made)] for _ in range(2)
    )
    assert first == second


def test_many_short_requests_fill_rows():
    made = [request(2 + n * 37 % 180, seed=n) for n in range(400)]
    rows = list(pack(made))
    useful = sum(row.num_tokens for row in rows)
    once = {r.ids[:-1].tobytes(): len(r.ids) - 1 for r in made}
    assert useful == sum(once.values())
    assert useful / sum(row.batch.tokens.size for row in rows) > 0.95


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(2049, [2048, 128]), (2050, [3072, 128]), (4097, [4096, 128]), (5000, [6144, 128])],
)
def test_a_request_longer_than_every_listed_row_gets_one_that_holds_it(length, sizes):
    rows = list(pack([request(30), request(length)]))
    assert [row.batch.tokens.shape[1] for row in rows] == sizes
    assert sorted(index for row in rows for index, _ in row.members) == [0, 1]


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
