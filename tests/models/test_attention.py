"""Attention against loops over queries in float64: packing, trees, padding, gradients."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from instructjax.models.attention import attend, attend_dense, visible
from instructjax.models.attention_tiles import TOGETHER, attend_tiles
from instructjax.models.tiles import find_tiles

LENGTH = 24


def by_hand(q, k, v, ends):
    """softmax(q k / sqrt(D)) v, one query and head at a time, in float64; zeros for padding."""
    rows, length = ends.shape
    q, k, v = (np.asarray(x, np.float64).reshape(rows, length, *x.shape[1:]) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(*q.shape[:3]):
        if ends[b, i] == 0:
            continue
        seen = [j for j in range(i + 1) if i < ends[b, j]]
        logits = k[b, seen, h // group] @ q[b, i, h] / np.sqrt(q.shape[3])
        weights = np.exp(logits - logits.max())
        out[b, i, h] = weights @ v[b, seen, h // group] / weights.sum()
    return out.reshape(rows * length, *q.shape[2:])


def lay_out(trees, length):
    """One row of `positions` and `ends` from trees: (tokens, [subtrees])."""
    positions, ends = np.zeros(length, np.int32), np.zeros(length, np.int32)

    def place(tree, start, depth):
        size, children = tree
        positions[start : start + size] = np.arange(depth, depth + size)
        stop = start + size
        for child in children:
            stop = place(child, stop, depth + size)
        ends[start : start + size] = stop
        return stop

    start = 0
    for tree in trees:
        start = place(tree, start, 0)
    return positions, ends


def size_of(tree):
    return tree[0] + sum(map(size_of, tree[1]))


trees = st.recursive(
    st.tuples(st.integers(1, 9), st.just(())),
    lambda child: st.tuples(st.integers(1, 6), st.lists(child, max_size=3).map(tuple)),
    max_leaves=4,
)


@st.composite
def rows(draw, count=2):
    placed = []
    for _ in range(count):
        chosen, room = [], LENGTH
        for tree in draw(st.lists(trees, max_size=4)):
            if size_of(tree) <= room:
                chosen.append(tree)
                room -= size_of(tree)
        placed.append(lay_out(chosen, LENGTH))
    positions, ends = zip(*placed, strict=True)
    return np.stack(positions), np.stack(ends)


def tensors(seed, tokens, heads=4, kv_heads=2, dim=4, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = [(tokens, heads, dim), (tokens, kv_heads, dim), (tokens, kv_heads, dim)]
    return tuple(jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in shapes)


def in_tiles(form, q, k, v, positions, ends, *, tile):
    """A form that works in tiles, given the tiles of this layout."""
    positions, ends = jnp.asarray(positions), jnp.asarray(ends)
    return form(q, k, v, ends, find_tiles(positions, ends, tile), tile=tile)


tiled_attention = partial(
    in_tiles, lambda q, k, v, ends, tiles, *, tile: attend_tiles(q, k, v, tiles, tile=tile)
)
tiles = {size: jax.jit(partial(tiled_attention, tile=size)) for size in (4, 16, 64)}
dense = jax.jit(attend_dense)


@settings(max_examples=50)
@given(layout=rows(), seed=st.integers(0, 99), tile=st.sampled_from([4, 16, 64]))
def test_both_forms_agree_with_a_loop_over_queries(layout, seed, tile):
    positions, ends = layout
    q, k, v = tensors(seed, ends.size)
    expected = by_hand(q, k, v, ends)
    used = ends.reshape(-1) > 0
    tiled = np.asarray(tiles[tile](q, k, v, positions, ends))
    assert np.isfinite(tiled).all()
    np.testing.assert_allclose(tiled[used], expected[used], atol=2e-5)
    np.testing.assert_allclose(np.asarray(dense(q, k, v, ends))[used], expected[used], atol=2e-5)


def by_platform(q, k, v, positions, ends):
    return attend(q, k, v, ends, positions, find_tiles(positions, ends, 64), tile=64)


@pytest.mark.parametrize(("length", "whole"), [(2000, True), (2048, False), (2049, False)])
def test_no_platform_attends_to_a_long_row_whole(length, whole):
    """Memory by the square of the row would not do: 9 heads of 32,768 tokens are 39 GB."""
    q, k, v = (jnp.zeros((length, heads, 4)) for heads in (2, 1, 1))
    positions, ends = jnp.arange(length)[None], jnp.full((1, length), length)

    lowered = (
        jax.jit(by_platform).trace(q, k, v, positions, ends).lower(lowering_platforms=("cuda",))
    )
    assert (f"{length}x{length}xf32" in lowered.as_text()) == whole


def weighted(attention, positions, ends):
    """A scalar of what tokens in use receive, with different weights everywhere."""
    positions, ends = jnp.asarray(positions), jnp.asarray(ends)
    used = ends.reshape(-1, 1, 1) > 0
    return lambda q, k, v: (
        jnp.where(used, attention(q, k, v, positions, ends), 0)
        * jnp.cos(jnp.arange(q.size).reshape(q.shape))
    ).sum()


grads_tiled = {
    size: jax.jit(
        lambda q, k, v, p, e, size=size: jax.grad(
            weighted(partial(tiled_attention, tile=size), p, e), (0, 1, 2)
        )(q, k, v)
    )
    for size in (4, 16, 64)
}
grads_dense = jax.jit(
    lambda q, k, v, p, e: jax.grad(
        weighted(lambda q, k, v, p, e: attend_dense(q, k, v, e), p, e), (0, 1, 2)
    )(q, k, v)
)


@settings(max_examples=25)
@given(layout=rows(), seed=st.integers(0, 99), tile=st.sampled_from([4, 16, 64]))
def test_gradients_of_both_forms_agree_and_are_finite(layout, seed, tile):
    positions, ends = layout
    q, k, v = tensors(seed, ends.size)
    tiled = grads_tiled[tile](q, k, v, positions, ends)
    for ours, reference in zip(tiled, grads_dense(q, k, v, positions, ends), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, reference, atol=1e-4)
        assert not np.asarray(ours)[ends.reshape(-1) == 0].any()


@pytest.mark.parametrize("tile", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_gradients_agree_with_finite_differences(tile):
    positions, ends = lay_out([(3, [(2, ()), (4, [(1, ()), (2, ())])]), (5, ())], LENGTH)
    positions, ends = positions[None], ends[None]
    function = jax.jit(weighted(partial(tiled_attention, tile=tile), positions, ends))
    check_grads(function, tensors(5, LENGTH), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_finite_differences_would_catch_a_wrong_backward_pass():
    positions, ends = lay_out([(9, ())], LENGTH)
    function = jax.jit(weighted(partial(tiled_attention, tile=4), positions[None], ends[None]))

    slopes = jax.jit(jax.grad(function, (0, 1, 2)))

    @jax.custom_vjp
    def wrong(q, k, v):
        return function(q, k, v)

    wrong.defvjp(
        lambda *args: (function(*args), args),
        lambda args, g: tuple(1.1 * g * d for d in slopes(*args)),
    )
    with pytest.raises(AssertionError):
        check_grads(
            jax.jit(wrong), tensors(5, LENGTH), order=1, modes=["rev"], atol=2e-2, rtol=2e-2
        )


def test_rows_of_padding_alone_give_finite_values_and_no_gradient():
    positions = ends = np.zeros((2, LENGTH), np.int32)
    q, k, v = tensors(3, ends.size)
    assert np.isfinite(tiles[4](q, k, v, positions, ends)).all()
    for gradient in grads_tiled[4](q, k, v, positions, ends):
        assert not np.asarray(gradient).any()


def test_what_padding_holds_does_not_matter_even_if_it_is_huge():
    positions, ends = lay_out([(5, ()), (8, ())], LENGTH)
    positions, ends = positions[None], ends[None]
    q, k, v = tensors(4, LENGTH)
    padding = (ends.reshape(-1) == 0)[:, None, None]
    loud = [jnp.where(padding, 1e30, x) for x in (q, k, v)]
    used = ~padding[:, 0, 0]
    quiet_out = np.asarray(tiles[4](q, k, v, positions, ends))
    np.testing.assert_array_equal(
        np.asarray(tiles[4](*loud, positions, ends))[used], quiet_out[used]
    )


def test_a_sequence_gets_the_same_bits_wherever_it_stands():
    q, k, v = tensors(6, 2 * LENGTH)
    alone = lay_out([(11, ())], LENGTH)
    behind = lay_out([(7, ()), (11, ()), (3, ())], LENGTH)

    def run(layout, row, start):
        positions, ends = np.zeros((2, 2, LENGTH), np.int32)
        positions[row], ends[row] = layout
        at = row * LENGTH + start
        moved = [jnp.roll(x, at, axis=0) for x in (q, k, v)]
        return np.asarray(tiles[4](*moved, positions, ends))[at : at + 11]

    first = run(alone, 0, 0)
    np.testing.assert_array_equal(run(behind, 0, 7), first)
    np.testing.assert_array_equal(run(behind, 1, 7), first)


@settings(max_examples=50)
@given(tree=trees, seed=st.integers(0, 99), tile=st.sampled_from([4, 16, 64]))
def test_a_path_of_a_tree_gets_the_same_bits_alone(tree, seed, tile):
    if size_of(tree) > LENGTH:
        tree = (tree[0], tree[1][:1])
    positions, ends = lay_out([tree], 2 * LENGTH)
    q, k, v = tensors(seed, 2 * LENGTH)
    shared = np.asarray(tiles[tile](q, k, v, positions[None], ends[None]))
    used = np.flatnonzero(ends)
    leaf = int(used[np.argmax(np.random.default_rng(seed).random(len(used)))])
    path = [i for i in range(leaf + 1) if leaf < ends[i]]
    assert positions[path].tolist() == list(range(len(path)))
    alone = [jnp.zeros_like(x).at[: len(path)].set(x[jnp.array(path)]) for x in (q, k, v)]
    positions, ends = lay_out([(len(path), ())], 2 * LENGTH)
    out = np.asarray(tiles[tile](*alone, positions[None], ends[None]))
    np.testing.assert_array_equal(shared[path], out[: len(path)])


def test_visible_is_the_rule_and_nothing_else():
    _, ends = lay_out([(2, [(1, ()), (2, ())]), (3, ())], 9)
    expected = [[k <= q < ends[k] for k in range(9)] for q in range(9)]
    np.testing.assert_array_equal(visible(jnp.asarray(ends[None]))[0], expected)
    # the second branch (tokens 3, 4) sees the prefix (0, 1) and not the first branch (2)
    assert expected[4] == [True, True, False, True, True, False, False, False, False]


def test_tiles_are_counted_from_each_sequence_and_skip_padding():
    positions, ends = lay_out([(5, ()), (2, [(3, ()), (1, ())])], 16)
    found = find_tiles(jnp.asarray(positions[None]), jnp.asarray(ends[None]), 4)
    count = int(found.count)
    # 0-3, 4 | 5-8 (two of the prefix, two of the branch), 9 of that branch, 10 of the other one
    assert found.owner.tolist() == [0] * 4 + [1] + [2] * 4 + [3] + [4] + [-1] * 5
    assert found.first[:count].tolist() == [0, 4, 5, 9, 8]
    assert found.own[:count].tolist() == [0, 0, 0, 0, 2]
    assert found.base[:count].tolist() == [-1, -1, -1, -1, 2]
    assert found.before[:count].tolist() == [-1, 0, -1, 2, -1]


def test_short_branches_behind_a_tile_are_a_group():
    # a prefix of 6, branches of 1, 1, 1, 3 and 1; then a sequence of 5 and one of 2
    branches = [(1, ()), (1, ()), (1, ()), (3, ()), (1, ())]
    positions, ends = lay_out([(6, branches), (5, ()), (2, ())], 24)
    found = find_tiles(jnp.asarray(positions[None]), jnp.asarray(ends[None]), 4)
    # Tiles: 0-3; 4, 5 and the first branch; a tile a branch, of which the fourth needs two; 13-16
    # and 17 of the next sequence; 18, 19.
    assert found.own[: int(found.count)].tolist() == [0, 0, 2, 2, 2, 0, 2, 0, 0, 0]
    # Nothing is before tile 0. Three tokens and one make a tile; with one more, and with the two
    # tokens of the fourth branch in their block, they do not; the rest is behind other tiles.
    groups = int(found.groups)
    assert found.lead[: groups + 1].tolist() == [0, 1, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_many_short_branches_get_the_same_bits_alone(dtype):
    sizes = np.random.default_rng(3).integers(1, 9, 24).tolist()
    prefix, length = 75, 256
    positions, ends = lay_out([(prefix, [(size, ()) for size in sizes])], length)
    found = find_tiles(jnp.asarray(positions[None]), jnp.asarray(ends[None]), 16)
    assert int(found.groups) < int(found.count) - 12
    q, k, v = tensors(5, length, heads=9, kv_heads=3, dim=64, dtype=dtype)
    shared = np.asarray(tiles[16](q, k, v, positions[None], ends[None]), np.float32)
    start = prefix
    for size in sizes:
        path = jnp.array([*range(prefix), *range(start, start + size)])
        alone = [jnp.zeros_like(x).at[: len(path)].set(x[path]) for x in (q, k, v)]
        positions, ends = lay_out([(len(path), ())], length)
        out = np.asarray(tiles[16](*alone, positions[None], ends[None]), np.float32)
        np.testing.assert_array_equal(shared[path], out[: len(path)])
        start += size


def test_a_tile_can_build_on_several():
    positions, ends = lay_out([(1, [(1, [(1, ()), (2, ())]), (3, ())])], 8)
    found = find_tiles(jnp.asarray(positions[None]), jnp.asarray(ends[None]), 8)
    assert found.owner.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert found.own[:3].tolist() == [0, 2, 1]
    assert found.base[:3].tolist() == [-1, 0, 1]  # of tile 1 only the lane that it has from tile 0


def test_bfloat16_differs_from_float32_by_rounding_alone():
    positions, ends = lay_out([(13, ()), (9, ())], LENGTH)
    positions, ends = jnp.asarray(positions[None]), jnp.asarray(ends[None])
    q, k, v = tensors(7, LENGTH, dtype=jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    exact = by_hand(wide[0], wide[1], wide[2], np.asarray(ends))
    used = np.asarray(ends).reshape(-1) > 0
    for out in (tiles[4](q, k, v, positions, ends), dense(q, k, v, ends)):
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float64)[used], exact[used], atol=0.05)


def compiled_text(function, *args):
    text = jax.jit(function).lower(*args).compile().as_text()
    assert text is not None
    return text


def test_no_square_of_the_length_exists_in_the_cpu_program():
    length = 331
    q, k, v = tensors(8, length)
    positions, ends = (x[None] for x in lay_out([(length, ())], length))
    function = weighted(by_platform, positions, ends)
    text = compiled_text(jax.grad(function, (0, 1, 2)), q, k, v)
    shapes = [[int(d) for d in m.split(",")] for m in re.findall(r"[a-z]\d+\[([\d,]+)\]", text)]
    assert len(shapes) > 50
    # heads x tile x tile at most, of the tiles that are computed together
    assert max(np.prod(shape) for shape in shapes) <= TOGETHER * 4 * 64 * 64 < length**2
    square = jax.grad(weighted(lambda q, k, v, _, e: attend_dense(q, k, v, e), positions, ends))
    assert f"{length},{length}" in compiled_text(square, q, k, v)
