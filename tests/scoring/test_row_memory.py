"""Rows within memory: the estimate beside XLA's own, rows that are bounded or did not fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batching.batch import batch_from_lengths
from instructjax.errors import ModelError
from instructjax.prompts import Request
from instructjax.scoring import Work, engine, row_memory, score_requests
from instructjax.scoring.log_probs import token_scores
from instructjax.scoring.row_memory import bytes_per_position, longest_row

SHAPES = {
    "wide": {"hidden_size": 64, "intermediate_size": 512},
    "heads": {"hidden_size": 32, "num_heads": 16, "num_kv_heads": 4, "head_dim": 32},
    "plain": {"hidden_size": 128, "intermediate_size": 256},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_position_takes_what_xla_says_within_a_factor_of_two(
    random_model: Any, shape: str
) -> None:
    model = random_model(num_layers=2, vocab_size=64, **SHAPES[shape])

    def held(length: int) -> int:
        tokens = jnp.zeros((1, length), jnp.int32)
        batch = batch_from_lengths(tokens, jnp.full(1, 1), jnp.full(1, length))
        compute = jax.jit(lambda params: token_scores(model.graphdef, params, batch))
        analysis: Any = compute.lower(model.params).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    measured = (held(8192) - held(4096)) / 4096
    assert 0.5 < bytes_per_position(model.config, "float32") / measured < 2


def test_top_k_takes_memory(random_model: Any) -> None:
    config = random_model(num_layers=1).config
    more = bytes_per_position(config, "float32", top_k=100) - bytes_per_position(config, "float32")
    assert more == 800  # an int32 and a float32 each


@pytest.fixture
def model(random_model: Any) -> Any:
    return random_model(num_layers=1, hidden_size=8, num_heads=2, num_kv_heads=1)


@pytest.fixture
def requests() -> list[Request]:
    """Many branches of one prefix, which a long row holds best."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 61, 700)
    made = []
    for size in rng.integers(20, 90, 150):
        ids = np.concatenate([prompt, rng.integers(0, 61, size)]).astype(np.int32)
        made.append(Request(ids=ids, spans=((len(ids) - 9, len(ids)),), num_bytes=1))
    return made


def run(model: Any, requests: list[Request]) -> tuple[np.ndarray, Work]:
    work = Work()
    found = [x.token_log_probs for x in score_requests(model, requests, work=work)]
    return np.stack(found), work


def check_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Law 2 where other programs ran."""
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_rows_are_no_longer_than_memory_allows(
    model: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, work = run(model, requests)
    assert max(length for length, _ in work.programs) > 2048
    per_position = bytes_per_position(model.config, "float32")
    for length in (2048, 1100):
        monkeypatch.setattr(row_memory, "CPU_BYTES", length * per_position)
        assert longest_row(model) == length
        bounded, work = run(model, requests)
        check_equal(bounded, whole)
        assert max(length for length, _ in work.programs) <= row_length(length)


@pytest.mark.parametrize("length", [1024, 300, 128])
def test_a_bound_below_the_prompt_costs_no_more_positions(
    model: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    some = [Request(ids=r.ids[:710], spans=((700, 710),), num_bytes=1) for r in requests[:8]]
    whole, unbounded = run(model, some)
    per_position = bytes_per_position(model.config, "float32")
    monkeypatch.setattr(row_memory, "CPU_BYTES", length * per_position)
    bounded, work = run(model, some)
    check_equal(bounded, whole)
    assert work.computed <= unbounded.computed == 1024


def row_length(tokens: int) -> int:
    return {2048: 2048, 1100: 1792}[tokens]


@pytest.mark.parametrize("most", [2048, 1024])
def test_a_row_that_does_not_fit_is_computed_as_shorter_ones(
    model: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    whole, _ = run(model, requests)
    real = engine._token_scores
    refused = []

    def limited(graphdef: Any, params: Any, batch: Any, **options: Any) -> Any:
        length = batch.tokens.shape[1]
        if length > most:
            refused.append(length)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return real(graphdef, params, batch, **options)

    monkeypatch.setattr(engine, "_token_scores", limited)
    check_equal(run(model, requests)[0], whole)
    assert max(refused) > 2048


def test_a_request_that_does_not_fit_is_an_error_with_a_remedy(
    model: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    monkeypatch.setattr(engine, "_token_scores", refuse)
    with pytest.raises(ModelError, match="1,024 tokens does not fit") as caught:
        run(model, requests)
    assert "bfloat16" in str(caught.value.remedy) and "mesh" in str(caught.value.remedy)


def test_another_failure_is_no_matter_of_memory(
    model: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(engine, "_token_scores", refuse)
    with pytest.raises(Exception, match="the device failed"):
        run(model, requests)
