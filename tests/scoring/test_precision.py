"""Law 9: which precision each product, exponential and sum has, read from the traced program."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from instructjax.batching.batch import batch_from_lengths
from instructjax.scoring.log_probs import token_log_probs, token_scores


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Every equation, those inside loops, branches and custom derivatives too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                yield from equations(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from equations(value)


def batch_of(vocab):
    tokens = np.random.default_rng(0).integers(0, vocab, (2, 24), dtype=np.int32)
    lengths = jnp.array([24, 17])
    return batch_from_lengths(jnp.asarray(tokens), jnp.array([3, 5]), lengths, tile=8)


VOCAB = 67  # no other size of the model


def programs(model):
    batch = batch_of(VOCAB)
    yield jax.make_jaxpr(lambda p: token_scores(model.graphdef, p, batch, top_k=2))(model.params)
    yield jax.make_jaxpr(jax.grad(lambda p: token_log_probs(model.graphdef, p, batch).sum()))(
        model.params
    )


def named(jaxpr, *names):
    found = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in names]
    assert found
    return found


def test_law_9_every_float32_product_has_the_highest_precision(random_model):
    for program in programs(random_model(vocab_size=VOCAB)):
        dots = named(program, "dot_general")
        assert len(dots) >= 9  # 7 projections, scores, values, head
        for dot in dots:
            assert dot.params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
            assert all(x.aval.dtype == jnp.float32 for x in (*dot.invars, *dot.outvars))


def test_law_9_the_head_multiplies_bfloat16_into_float32(random_model):
    scoring, gradient = programs(random_model(vocab_size=VOCAB, dtype="bfloat16"))
    dots = named(scoring, "dot_general")
    heads = [dot for dot in dots if VOCAB in dot.outvars[0].aval.shape]
    assert len(heads) == 1
    assert all(x.aval.dtype == jnp.bfloat16 for x in heads[0].invars)
    assert heads[0].params["preferred_element_type"] == jnp.float32
    assert heads[0].outvars[0].aval.dtype == jnp.float32
    others = [dot for dot in dots if dot is not heads[0]]
    assert any(dot.outvars[0].aval.dtype == jnp.bfloat16 for dot in others)
    # logits computed again and the sum into the table's gradient
    wide = [d for d in named(gradient, "dot_general") if VOCAB in d.outvars[0].aval.shape]
    assert len(wide) >= 3
    assert all(dot.outvars[0].aval.dtype == jnp.float32 for dot in wide)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_law_9_log_sum_exp_and_softmax_are_float32(random_model, dtype):
    for program in programs(random_model(vocab_size=VOCAB, dtype=dtype)):
        for equation in named(program, "exp", "log", "log1p", "exp2"):
            assert equation.invars[0].aval.dtype == jnp.float32
            assert equation.outvars[0].aval.dtype == jnp.float32
    scoring, _ = programs(random_model(vocab_size=VOCAB, dtype=dtype))
    for equation in named(scoring, "reduce_sum", "reduce_max"):
        assert equation.invars[0].aval.dtype != jnp.dtype("bfloat16")
    assert scoring.out_avals[0].dtype == jnp.float32


def test_law_9_pitfall_12_a_bfloat16_model_loses_nothing_after_its_hidden_states(random_model):
    model = random_model(vocab_size=VOCAB, hidden_size=64, head_dim=16, dtype="bfloat16")
    batch = batch_of(VOCAB)
    decoder = nnx.merge(model.graphdef, model.params)
    hidden = jax.jit(lambda: decoder(batch.tokens, batch.positions, batch.ends, tile=8))()
    assert hidden.dtype == jnp.bfloat16
    logits = np.asarray(hidden[0], np.float64) @ np.asarray(decoder.output_table, np.float64).T
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    count = int(batch.num_scored[0])
    expected = logs[np.asarray(batch.sources[0, :count]), np.asarray(batch.targets[0, :count])]
    found = jax.jit(lambda: token_log_probs(model.graphdef, model.params, batch))()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, :count], expected, atol=1e-4)


def test_the_walk_sees_inside_loops_and_branches():
    def nested(x):
        def body(x, _):
            return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x), None

        return lax.scan(body, x, None, length=3)[0]

    jaxpr = jax.make_jaxpr(nested)(jnp.ones((2, 2)))
    (dot,) = named(jaxpr, "dot_general")
    assert dot.params["precision"] is None
