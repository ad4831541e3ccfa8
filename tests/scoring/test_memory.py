"""Law 10: what the compiled program holds in memory, read from its HLO."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from instructjax.batching.batch import batch_from_lengths
from instructjax.scoring.head import COLUMNS, ROWS
from instructjax.scoring.log_probs import token_log_probs, token_scores

VOCAB, HIDDEN = 50_021, 16
ROWS_OF_BATCH, LENGTH = 4, 203


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request, random_model):
    return random_model(vocab_size=VOCAB, num_layers=1, tie_embeddings=request.param)


def batch_of(tokens):
    rows, length = tokens.shape
    return batch_from_lengths(tokens, jnp.full(rows, 1), jnp.full(rows, length), tile=32)


def scoring(model):
    return lambda params, tokens: token_scores(model.graphdef, params, batch_of(tokens))


def gradient(model):
    return jax.grad(
        lambda params, tokens: token_log_probs(model.graphdef, params, batch_of(tokens)).sum()
    )


def compile_for(function, params, rows=ROWS_OF_BATCH, length=LENGTH):
    return jax.jit(function).lower(params, jnp.zeros((rows, length), jnp.int32)).compile()


def temporary(program):
    """Bytes beside arguments and results."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def shapes_in(text):
    """Every array shape of an HLO module."""
    assert text is not None
    found = {
        tuple(int(size) for size in sizes.split(","))
        for sizes in re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", text)
    }
    assert len(found) > 20
    return found


@pytest.mark.parametrize("make", [scoring, gradient])
def test_law_10_no_array_of_tokens_by_vocabulary_exists(model, make):
    program = compile_for(make(model), model.params)
    shapes = shapes_in(program.as_text())
    table = VOCAB * HIDDEN
    assert (VOCAB, HIDDEN) in shapes
    for shape in shapes:
        # Rows and columns may be rounded up or tiled, so sizes are compared, not names of axes.
        assert math.prod(shape) <= max(table, ROWS * COLUMNS), shape
        if VOCAB in shape:
            rest = [size for size in shape if size not in (VOCAB, 1)]
            assert rest in ([], [HIDDEN]), shape
    assert 30 * max(table, ROWS * COLUMNS) < ROWS_OF_BATCH * LENGTH * VOCAB


@pytest.mark.parametrize("make", [scoring, gradient])
def test_law_10_temporary_memory_is_a_few_tiles_of_logits(model, make):
    used = temporary(compile_for(make(model), model.params))
    logits, table = 4 * ROWS * COLUMNS, 4 * VOCAB * HIDDEN
    tables = 0 if make is scoring else 4  # the gradient of the table, and of a tied embedding
    assert used < 6 * logits + tables * table
    assert used < 4 * ROWS_OF_BATCH * LENGTH * VOCAB / 3


def test_law_10_memory_does_not_grow_with_what_is_scored(model):
    one, four = (temporary(compile_for(scoring(model), model.params, rows=rows)) for rows in (1, 4))
    hidden = 4 * 3 * LENGTH * HIDDEN
    assert four - one < 40 * hidden


def test_law_10_these_tests_would_see_dense_logits(random_model):
    model = random_model(vocab_size=VOCAB, num_layers=1)

    def dense(params, tokens):
        batch = batch_of(tokens)
        decoder = nnx.merge(model.graphdef, params)
        hidden = decoder(batch.tokens, batch.positions, batch.ends, tile=32)
        logs = jax.nn.log_softmax(hidden @ decoder.output_table.T)
        return jnp.take_along_axis(logs, batch.targets[..., None], -1)

    program = compile_for(dense, model.params)
    biggest = max(math.prod(shape) for shape in shapes_in(program.as_text()))
    assert biggest >= ROWS_OF_BATCH * LENGTH * VOCAB
    assert temporary(program) >= 4 * ROWS_OF_BATCH * LENGTH * VOCAB
