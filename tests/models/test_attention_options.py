"""Windows, sinks, scales and soft caps: both forms of attention against loops in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from instructjax.models.attention import Window, attend_dense
from instructjax.models.attention_tiles import attend_tiles
from instructjax.models.tiles import find_tiles

LENGTH = 24
# Two branches on a prefix, one of them branching again, then a sequence of its own, then padding.
POSITIONS = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 6, 7, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0]])
ENDS = np.array([[14] * 5 + [9] * 4 + [14, 12, 12, 14, 14] + [21] * 7 + [0] * 3])
SLOW = pytest.mark.slow
SINKS = jnp.array([-1.0, 0.5, 2.0, 4.0])
OPTIONS = {
    "window": {"window": 3},
    "window of one": {"window": 1},
    "window beyond the text": {"window": 99},
    "sinks": {"sinks": SINKS},
    "cap": {"softcap": 2.5},
    "scale": {"scale": 0.9},
    "all": {"window": 5, "sinks": SINKS, "softcap": 2.5, "scale": 0.9},
}


def by_hand(q, k, v, window=None, sinks=None, scale=None, softcap=None):
    """One query and head at a time, in float64; zeros for padding."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    depth, ends = POSITIONS[0], ENDS[0]
    for i, h in np.ndindex(*q.shape[:2]):
        if ends[i] == 0:
            continue
        seen = [j for j in range(i + 1) if i < ends[j]]
        seen = [j for j in seen if window is None or depth[i] - depth[j] < window]
        logits = k[seen, h // 2] @ q[i, h] * (0.5 if scale is None else scale)
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits)
        total = weights.sum() + (0 if sinks is None else np.exp(float(sinks[h])))
        out[i, h] = weights @ v[seen, h // 2] / total
    return out


def tensors(seed):
    rng = np.random.default_rng(seed)
    shapes = [(LENGTH, heads, 4) for heads in (4, 2, 2)]
    return tuple(jnp.asarray(1.5 * rng.standard_normal(shape), jnp.float32) for shape in shapes)


def in_tiles(q, k, v, sinks, window, *, tile, positions=POSITIONS, ends=ENDS, **options):
    tiles = find_tiles(jnp.asarray(positions), jnp.asarray(ends), tile)
    window = None if window is None else jnp.asarray(window)
    return attend_tiles(q, k, v, tiles, tile=tile, sinks=sinks, window=window, **options)


def whole(q, k, v, sinks, window, **options):
    at = None if window is None else Window(jnp.asarray(window), jnp.asarray(POSITIONS))
    return attend_dense(q, k, v, jnp.asarray(ENDS), sinks=sinks, window=at, **options)


FORMS = {f"tiles of {n}": partial(in_tiles, tile=n) for n in (4, 16)} | {"whole": whole}


def split(options):
    rest = {name: value for name, value in options.items() if name in ("scale", "softcap")}
    return options.get("sinks"), options.get("window"), rest


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=() if name == "all" or form == "tiles of 4" else SLOW)
        for name in OPTIONS
        for form in FORMS
    ],
)
def test_options_agree_with_a_loop_over_queries(name, form):
    sinks, window, rest = split(OPTIONS[name])
    q, k, v = tensors(1)
    ours = np.asarray(jax.jit(partial(FORMS[form], **rest))(q, k, v, sinks, window))
    used = ENDS[0] > 0
    expected = by_hand(q, k, v, **OPTIONS[name])
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours[used], expected[used], atol=1e-5)
    plain = by_hand(q, k, v)
    assert (np.abs(plain - expected).max() > 0.1) == (name != "window beyond the text")


def scalar(form, sinks, window, rest):
    used = jnp.asarray(ENDS[0] > 0)[:, None, None]

    def function(q, k, v, *sinks):
        out = form(q, k, v, sinks[0] if sinks else None, window, **rest)
        return (jnp.where(used, out, 0) * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()

    return jax.jit(function), () if sinks is None else (sinks,)


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=SLOW) for name in ("window", "sinks", "cap"))]
)
def test_gradients_of_both_forms_agree(name):
    sinks, window, rest = split(OPTIONS[name])
    expected = None
    for form in FORMS.values():
        function, more = scalar(form, sinks, window, rest)
        arguments = (*tensors(2), *more)
        slopes = jax.jit(jax.grad(function, tuple(range(len(arguments)))))(*arguments)
        expected = slopes if expected is None else expected
        for ours, reference in zip(slopes, expected, strict=True):
            assert np.abs(reference).max() > 0.1
            np.testing.assert_allclose(ours, reference, atol=2e-5)


def test_gradients_agree_with_finite_differences():
    sinks, window, rest = split(OPTIONS["all"])
    function, more = scalar(FORMS["tiles of 4"], sinks, window, rest)
    check_grads(function, (*tensors(3), *more), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_a_path_of_a_tree_gets_the_same_bits_alone():
    sinks, window, rest = split(OPTIONS["all"])
    q, k, v = tensors(4)
    run = jax.jit(
        lambda q, k, v, p, e: in_tiles(q, k, v, sinks, window, tile=4, positions=p, ends=e, **rest)
    )
    shared = np.asarray(run(q, k, v, POSITIONS, ENDS))
    path = [i for i in range(14) if ENDS[0, i] > 13]  # to the last leaf of the tree
    assert POSITIONS[0, path].tolist() == list(range(8))
    alone = [jnp.zeros_like(x).at[:8].set(x[jnp.array(path)]) for x in (q, k, v)]
    positions, ends = np.zeros_like(POSITIONS), np.zeros_like(ENDS)
    positions[0, :8], ends[0, :8] = np.arange(8), 8
    np.testing.assert_array_equal(shared[path], np.asarray(run(*alone, positions, ends))[:8])


def test_tiles_beyond_the_window_are_not_visited():
    # What they hold is no number: it would show.
    q, k, v = tensors(5)
    positions, ends = np.arange(LENGTH)[None], np.full((1, LENGTH), LENGTH)
    run = partial(in_tiles, tile=4, positions=positions, ends=ends, sinks=None, window=5)
    far = (jnp.arange(LENGTH) < 12)[:, None, None]  # queries from 19 on see 15 and later
    loud = [jnp.where(far, jnp.nan, x) for x in (k, v)]
    np.testing.assert_array_equal(run(q, *loud)[19:], run(q, k, v)[19:])
