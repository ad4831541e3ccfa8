"""Batches from lengths, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.batching.batch import batch_from_lengths
from instructjax.errors import UsageError

WIDTH = 9

lengths = st.integers(0, WIDTH).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
make = jax.jit(batch_from_lengths, static_argnames="tile")


def scored_pairs(batch, row):
    count = int(batch.num_scored[row])
    return list(
        zip(
            np.asarray(batch.sources)[row, :count].tolist(),
            np.asarray(batch.targets)[row, :count].tolist(),
            strict=True,
        )
    )


@given(rows=st.lists(lengths, min_size=3, max_size=3), seed=st.integers(0, 9))
def test_what_is_scored_follows_from_lengths_alone(rows, seed):
    tokens = np.random.default_rng(seed).integers(0, 3, (3, WIDTH), dtype=np.int32)
    prompts, totals = np.array(rows, np.int32).T
    batch = make(tokens, prompts, totals)
    for row, (prompt, total) in enumerate(rows):
        expected = [(t - 1, int(tokens[row, t])) for t in range(max(prompt, 1), total)]
        assert scored_pairs(batch, row) == expected
        assert batch.ends[row].tolist() == [total] * total + [0] * (WIDTH - total)
        assert batch.positions[row].tolist() == list(range(WIDTH))
    assert ((batch.sources >= 0) & (batch.sources < WIDTH)).all()


def test_pitfall_8_pad_equal_to_eos_changes_nothing():
    eos = 2
    tokens = jnp.array([[7, eos, 8, eos, eos, eos], [7, eos, 8, eos, 5, 5]])
    batch = batch_from_lengths(tokens, jnp.array([2, 2]), jnp.array([4, 4]))
    assert scored_pairs(batch, 0) == scored_pairs(batch, 1) == [(1, 8), (2, eos)]
    np.testing.assert_array_equal(batch.ends[0], batch.ends[1])


def test_law_6_an_empty_response_scores_nothing():
    batch = make(jnp.ones((2, 4), int), jnp.array([4, 3]), jnp.array([4, 3]))
    assert batch.num_scored.tolist() == [0, 0]


def test_batches_are_pytrees_whose_tile_is_static():
    batch = batch_from_lengths(jnp.ones((2, 4), int), jnp.array([1, 1]), jnp.array([4, 3]), tile=16)
    leaves, structure = jax.tree.flatten(batch)
    assert len(leaves) == 6
    assert jax.tree.unflatten(structure, leaves).tile == 16


def test_it_can_be_called_inside_vmap():
    tokens = jnp.arange(12).reshape(2, 1, 6)
    prompts, totals = jnp.array([[1], [2]]), jnp.array([[5], [6]])
    mapped = jax.vmap(lambda *args: jax.tree.leaves(batch_from_lengths(*args)))(
        tokens, prompts, totals
    )
    one = batch_from_lengths(tokens[1], prompts[1], totals[1])
    for a, b in zip(mapped, jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(a[1], b)


@pytest.mark.parametrize(
    ("prompt", "length", "words"),
    [
        (4, 4, "no response"),
        (5, 4, "no response"),
        (0, 1, "no response"),
        (0, 0, "without tokens"),
        (1, -2, "without tokens"),
        (1, 7, "longer than the row, which has 6 tokens"),
        (-1, 3, "negative"),
    ],
)
def test_known_lengths_that_make_no_sense_are_refused(prompt, length, words):
    tokens = jnp.ones((3, 6), int)
    prompts, totals = jnp.array([1, 1, prompt]), jnp.array([6, 2, length])
    with pytest.raises(UsageError, match=words) as caught:
        batch_from_lengths(tokens, prompts, totals)
    assert caught.value.row == "row 3"
    # Where nothing is known nothing is checked, and what is known is checked inside jit too.
    make(tokens, prompts, totals)
    with pytest.raises(UsageError, match=words):
        jax.jit(lambda t: batch_from_lengths(t, prompts, totals))(tokens)


def test_one_length_alone_is_checked_where_the_other_is_traced():
    tokens, lengths = jnp.ones((1, 6), int), jnp.array([7])
    run = jax.jit(lambda prompts: batch_from_lengths(tokens, prompts, lengths))
    with pytest.raises(UsageError, match="prompt length unknown, length 7"):
        run(jnp.array([1]))


def test_the_shortest_and_the_longest_are_taken():
    batch = batch_from_lengths(jnp.ones((2, 6), int), jnp.array([0, 5]), jnp.array([2, 6]))
    assert batch.num_scored.tolist() == [1, 1]
