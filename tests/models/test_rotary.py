"""Rotary positions: transformers' frequencies, the definition by complex numbers, its symmetry."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.config import RopeConfig
from instructjax.models.rotary import inverse_frequencies, rotate, rotation

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "rope.json").read_text())


def rope_of(case):
    return RopeConfig(
        theta=case["theta"],
        kind=case["rope_type"],
        factor=case.get("factor", 1.0),
        low_freq_factor=case.get("low_freq_factor", 1.0),
        high_freq_factor=case.get("high_freq_factor", 4.0),
        original_max_positions=case.get("original_max_position_embeddings", 8192),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['rope_type']}-{c['head_dim']}")
def test_inverse_frequencies_are_those_of_transformers(case):
    ours = inverse_frequencies(rope_of(case), case["head_dim"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, case["inverse_frequencies"], rtol=3e-7)


def test_llama3_keeps_short_waves_stretches_long_ones_and_bends_between():
    rope = RopeConfig(
        theta=1e4,
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=32,
    )
    plain = 1e4 ** (-np.arange(0, 32, 2) / 32)
    stretch = plain / inverse_frequencies(rope, 32)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8, wavelength > 32
    np.testing.assert_allclose(stretch[short], 1, rtol=1e-6)
    np.testing.assert_allclose(stretch[long], 8, rtol=1e-6)
    between = stretch[~short & ~long]
    assert short.any() and long.any() and between.size >= 2
    assert np.all((between > 1) & (between < 8)) and np.all(np.diff(between) > 0)


def test_rotate_multiplies_by_a_complex_unit():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 7, 100, 2047])
    inverse = inverse_frequencies(RopeConfig(theta=1e4), 8)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(
        1j * positions[:, None, None] * inverse.astype(np.float64)
    )
    ours = rotate(jnp.asarray(x), *rotation(jnp.asarray(positions), inverse))
    # An angle near 2047 radians is held in float32 to 1e-4.
    np.testing.assert_allclose(ours[..., :4], turned.real, atol=4e-4)
    np.testing.assert_allclose(ours[..., 4:], turned.imag, atol=4e-4)
    np.testing.assert_array_equal(ours[0], x[0])


def test_products_of_rotated_vectors_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((2, 1, 1, 8)).astype(np.float32)
    inverse = inverse_frequencies(RopeConfig(theta=100.0), 8)

    def product(m, n):
        a = rotate(jnp.asarray(q), *rotation(jnp.array([m]), inverse))
        b = rotate(jnp.asarray(k), *rotation(jnp.array([n]), inverse))
        return float((a * b).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_bfloat16_vectors_are_turned_in_float32():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((4, 2, 8)), jnp.bfloat16)
    inverse = inverse_frequencies(RopeConfig(), 8)
    angles = rotation(jnp.array([0, 300, 1001, 5003]), inverse)
    assert angles[0].dtype == jnp.float32
    exact = rotate(x.astype(jnp.float32), *angles)
    ours = rotate(x, *angles)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))
