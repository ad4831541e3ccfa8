"""The decoder against numpy in float64, and what its program looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructjax.batching.batch import batch_from_lengths
from instructjax.models.linear import Linear, RMSNorm
from instructjax.scoring.log_probs import next_token_log_probs

VARIANTS = {
    "grouped": {},
    "multi-head, untied": {"num_kv_heads": 4},
    "one key-value head, tied": {"num_kv_heads": 1, "tie_embeddings": True},
    "wide heads": {"head_dim": 10},
    "biases": {"attention_bias": True, "mlp_bias": True, "norm_eps": 0.3},
}
AT_ONCE = ("one key-value head, tied", "biases")


def hidden(model, tokens, positions, ends, tile=64):
    return nnx.merge(model.graphdef, model.params)(tokens, positions, ends, tile=tile)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=() if name in AT_ONCE else pytest.mark.slow)
        for name, fields in VARIANTS.items()
    ],
)
def test_distributions_are_those_of_a_decoder_written_in_numpy(
    fields, random_model, decode_by_hand
):
    model = random_model(seed=3, **fields)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 21)
    tokens = jnp.asarray(np.pad(ids, (0, 11)))[None]
    batch = batch_from_lengths(tokens, jnp.array([1]), jnp.array([21]), tile=8)
    ours = jax.jit(next_token_log_probs)(model.graphdef, model.params, batch, jnp.arange(21))
    expected = decode_by_hand(model, ids)
    assert expected.max() > np.log(0.2) and expected.min() < -8  # far from uniform
    np.testing.assert_allclose(ours[0], expected, atol=3e-5)


def test_a_token_changes_nothing_before_it(random_model):
    model = random_model()
    tokens = jnp.arange(24)[None] % 61
    positions, ends = jnp.arange(24)[None], jnp.full((1, 24), 24)
    run = jax.jit(lambda tokens: hidden(model, tokens, positions, ends, tile=8))
    before, after = run(tokens), run(tokens.at[0, 13].set(60))
    np.testing.assert_array_equal(before[:, :13], after[:, :13])
    assert (jnp.abs(before - after).max(-1)[0, 13:] > 1e-3).all()


def test_positions_count(random_model):
    model = random_model()
    tokens = jnp.arange(8)[None]
    ends = jnp.full((1, 8), 8)
    stretched = hidden(model, tokens, 3 * jnp.arange(8)[None], ends)
    plain = hidden(model, tokens, jnp.arange(8)[None], ends)
    np.testing.assert_allclose(stretched[:, 0], plain[:, 0], atol=1e-6)
    assert jnp.abs(stretched - plain)[:, 1:].max() > 1e-2


def test_layers_are_scanned_so_the_program_does_not_grow_with_depth(random_model):
    def size(depth):
        model = random_model(num_layers=depth)
        tokens = jnp.zeros((1, 16), jnp.int32)
        jaxpr = jax.make_jaxpr(
            lambda params: nnx.merge(model.graphdef, params)(tokens, tokens, tokens, tile=8)
        )(model.params)
        return len(str(jaxpr.jaxpr).splitlines())

    assert size(2) == size(7)


def test_tied_head_is_the_embedding_and_an_untied_one_is_not(random_model):
    tied = random_model(tie_embeddings=True)
    decoder = nnx.merge(tied.graphdef, tied.params)
    assert decoder.lm_head is None
    np.testing.assert_array_equal(decoder.output_table, decoder.embed.embedding[...])
    untied = random_model()
    decoder = nnx.merge(untied.graphdef, untied.params)
    assert jnp.abs(decoder.output_table - decoder.embed.embedding[...]).max() > 0.1


def test_rms_norm_takes_its_mean_square_in_float32():
    norm = RMSNorm(256, eps=1e-6, dtype=jnp.dtype("bfloat16"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 256)), jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    rounded = exact.astype(jnp.bfloat16).astype(np.float64)
    ours = np.asarray(norm(x), np.float64)
    # The only rounding is the last one; a mean taken in bfloat16 shifts most of the entries.
    assert (ours != rounded).mean() < 0.01
    assert norm(1e3 * jnp.ones((1, 256), jnp.bfloat16)).max() == 1


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_an_affine_map(bias):
    layer = Linear(3, 2, bias=bias, dtype=jnp.dtype("float32"))
    layer.kernel[...] = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    if bias:
        assert layer.bias is not None
        layer.bias[...] = jnp.array([10.0, 20.0])
    expected = np.array([[22.0, 28.0]]) + ([10, 20] if bias else 0)
    np.testing.assert_array_equal(layer(jnp.array([[1.0, 2.0, 3.0]])), expected)
