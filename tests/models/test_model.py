"""Putting loaded arrays into a decoder, and the loaded model as a whole."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructjax.errors import ModelError, UsageError
from instructjax.models.model import abstract_decoder, fill, load_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))


def test_all_fixtures_are_here():
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_loads_with_every_parameter_filled(name):
    model = load_model(FIXTURES / name)
    leaves = jax.tree.leaves(model.params)
    assert sum(leaf.size for leaf in leaves) == model.config.num_params
    assert all(leaf.dtype == jnp.float32 and np.asarray(leaf).std() > 0.05 for leaf in leaves)
    assert model.name == name and len(model.fingerprint) == 64


def test_bfloat16_is_the_rounding_of_float32():
    full = load_model(FIXTURES / "llama-tied")
    half = load_model(FIXTURES / "llama-tied", dtype="bfloat16")
    assert half.dtype == "bfloat16" and half.fingerprint == full.fingerprint
    for a, b in zip(jax.tree.leaves(full.params), jax.tree.leaves(half.params), strict=True):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)


def test_an_abstract_decoder_takes_no_memory(tiny_model):
    _, abstract = abstract_decoder(tiny_model.config, "float32")
    leaves = jax.tree.leaves(abstract)
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.fixture
def arrays(tiny_model):
    return nnx.to_pure_dict(jax.tree.map(lambda x: x, tiny_model.params))


def filled(tiny_model, arrays, dtype="float32"):
    return fill(abstract_decoder(tiny_model.config, dtype)[1], arrays)


def test_fill_puts_each_array_in_its_place(tiny_model, arrays):
    same = jax.tree.map(lambda a, b: a is b, filled(tiny_model, arrays), tiny_model.params)
    assert all(jax.tree.leaves(same))


def test_fill_refuses_a_missing_parameter(tiny_model, arrays):
    del arrays["final_norm"]
    with pytest.raises(ModelError):
        filled(tiny_model, arrays)


def test_fill_refuses_a_surplus_parameter(tiny_model, arrays):
    arrays["lm_head"] = {"kernel": jnp.zeros((352, 32))}
    with pytest.raises(ModelError):
        filled(tiny_model, arrays)


def test_fill_refuses_a_wrong_shape_and_names_the_parameter(tiny_model, arrays):
    arrays["final_norm"]["scale"] = jnp.ones(31)
    with pytest.raises(ModelError, match="final_norm.*scale"):
        filled(tiny_model, arrays)


def test_fill_refuses_a_wrong_dtype(tiny_model, arrays):
    with pytest.raises(ModelError, match="bfloat16"):
        filled(tiny_model, arrays, dtype="bfloat16")


def test_an_unknown_dtype_is_a_usage_error():
    with pytest.raises(UsageError, match="float16"):
        load_model(FIXTURES / "llama-tied", dtype="float16")
