"""A step over a cache gives the same bits however many columns stand empty after the sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models.kv_cache import attend_cached
from instructjax.sampling.responses import SHORT

COLUMNS = (64, 128, 192, 256, 384, 512)
assert COLUMNS[-1] == SHORT
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window, sinks, softcap": {"window": 40, "sinks": jnp.array([0.3, -1.0] * 3), "softcap": 2.0},
}


@pytest.mark.parametrize("slots", [pytest.param(1, marks=pytest.mark.slow), 16])
@pytest.mark.parametrize(
    "name", ["plain", pytest.param("window, sinks, softcap", marks=pytest.mark.slow)]
)
def test_empty_columns_change_no_bit(slots: int, name: str) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((slots, 6, 64), np.float32)
    k, v = rng.standard_normal((2, slots, 2, 64, 64), np.float32)
    positions = jnp.asarray(rng.integers(0, 64, slots))
    attend = jax.jit(lambda *args: attend_cached(*args, **OPTIONS[name]))
    found = []
    for columns in COLUMNS:
        # What stands there is of sequences before.
        keys, values = (rng.standard_normal((slots, 2, columns, 64), np.float32) for _ in "kv")
        keys[:, :, :64], values[:, :, :64] = k, v
        found.append(np.asarray(attend(q, keys.swapaxes(2, 3), values, positions)))
    for columns, other in zip(COLUMNS[1:], found[1:], strict=True):
        np.testing.assert_array_equal(other, found[0], err_msg=f"{columns} columns")
