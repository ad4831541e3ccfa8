"""The streaming engine: order, windows, sums in float64, and how much it compiles."""

from collections import Counter

import jax
import numpy as np
import pytest

from instructjax.batching.packing import LARGE_TILE, LONG_ROWS, ROW_LENGTHS, SMALL_TILE, pack
from instructjax.errors import PromptError
from instructjax.prompts.request import Request
from instructjax.scoring import engine
from instructjax.scoring.dispatch import STREAMS
from instructjax.scoring.engine import ScoredRequest, Work, score_requests


def request(length, seed=0, vocab=61, spans=None):
    ids = np.random.default_rng([seed, length]).integers(0, vocab, length, dtype=np.int32)
    return Request(ids=ids, spans=spans or ((max(1, length - 7), length),), num_bytes=0)


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(num_layers=1, hidden_size=8, num_heads=2, num_kv_heads=1)


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles while the test runs."""
    names = []

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_results_come_in_the_order_of_the_input(model):
    requests = [request(n, seed=n) for n in (40, 3, 300, 8, 150, 2, 90)]
    results = list(score_requests(model, requests))
    assert [r.request for r in results] == requests
    for result, wanted in zip(results, requests, strict=True):
        assert len(result.token_log_probs) == wanted.num_tokens
        assert (result.token_log_probs < 0).all()


def test_windows_change_nothing_and_few_are_read_ahead(model, monkeypatch):
    requests = [request(5 + n, seed=n) for n in range(25)]
    whole = list(score_requests(model, requests))
    monkeypatch.setattr(engine, "WINDOW", 4)
    taken = []

    def stream():
        for one in requests:
            taken.append(one)
            yield one

    results = score_requests(model, stream())
    first = next(results)
    assert len(taken) <= 4 * (STREAMS + 1)
    rest = list(results)
    for a, b in zip([first, *rest], whole, strict=True):
        assert a.request is b.request
        np.testing.assert_allclose(a.token_log_probs, b.token_log_probs, atol=1e-5)


def test_several_spans_are_scored_in_one_pass(model):
    two = request(30, spans=((4, 9), (20, 30)))
    (result,) = score_requests(model, [two])
    parts = [
        next(score_requests(model, [Request(ids=two.ids, spans=(span,), num_bytes=0)]))
        for span in two.spans
    ]
    expected = np.concatenate([part.token_log_probs for part in parts])
    np.testing.assert_allclose(result.token_log_probs, expected, atol=1e-5)
    assert result.log_prob == pytest.approx(sum(part.log_prob for part in parts), abs=1e-4)


def test_law_9_sums_over_a_sequence_are_float64():
    values = np.full(100_001, -0.1, np.float32)
    values[0] = -3e7  # in float32, 0.1 more or less is nothing beside it
    empty = np.zeros(0)
    result = ScoredRequest(
        request=request(5),
        token_log_probs=values,
        greedy=empty,
        entropy=empty,
        rank=empty,
        top_ids=empty,
        top_log_probs=empty,
    )
    expected = -3e7 - 100_000 * float(np.float32(0.1))
    assert result.log_prob == pytest.approx(expected, abs=1e-3)
    assert abs(float(values.sum()) - expected) > 0.5


def test_alternatives_are_kept_on_request(model):
    (result,) = score_requests(model, [request(20)], top_k=3)
    assert result.top_ids.shape == result.top_log_probs.shape == (7, 3)
    assert (np.diff(result.top_log_probs, axis=-1) <= 0).all()
    np.testing.assert_array_equal(result.greedy, result.top_ids[:, 0] == result.request.target_ids)
    (none,) = score_requests(model, [request(20)])
    assert none.top_ids.shape == (7, 0)


def test_work_and_rows_are_counted(model):
    requests = [request(n, seed=n) for n in (100, 90, 20)]
    work, rows = Work(), []
    list(score_requests(model, requests, work=work, on_row=rows.append))
    assert sum(rows) == 3
    assert work.requested == work.useful == 99 + 89 + 19
    prefixes = {tuple(r.ids[:n]) for r in requests for n in range(1, len(r.ids))}
    assert work.distinct == len(prefixes)
    assert work.computed == 512 and work.useful_share == pytest.approx(207 / 512)
    assert work.programs == {(512, SMALL_TILE)}
    assert Work().useful_share == 1.0


def test_no_requests_give_no_results(model):
    assert list(score_requests(model, [])) == []


def test_results_do_not_keep_whole_rows_alive(model):
    (result,) = score_requests(model, [request(20)])
    assert result.token_log_probs.base is None


def test_few_programs_are_compiled_and_a_second_run_compiles_none(random_model, compiled):
    # A shape of its own: other tests have compiled nothing for it.
    model = random_model(num_layers=1, hidden_size=8, num_heads=2, num_kv_heads=1, vocab_size=67)
    rng = np.random.default_rng(0)
    requests = [request(int(n), seed=i) for i, n in enumerate(rng.integers(2, 1501, 300))]
    work = Work()
    first = list(score_requests(model, requests, work=work))
    lengths = (*ROW_LENGTHS, 3072, 6144, *LONG_ROWS)
    assert work.programs <= {(t, tile) for t in lengths for tile in (SMALL_TILE, LARGE_TILE)}
    counts = Counter(compiled)
    assert counts["jit(token_scores)"] == len(work.programs), counts
    assert work.useful_share > 0.9

    compiled.clear()
    rng.shuffle(requests)
    again = list(score_requests(model, requests))
    assert compiled == []
    by_ids = {id(r.request): r for r in first}
    for result in again:
        np.testing.assert_allclose(
            result.token_log_probs, by_ids[id(result.request)].token_log_probs, atol=1e-5
        )


def test_requests_longer_than_2048_tokens_are_scored(model, decode_by_hand):
    long = request(2100, spans=((2090, 2100),))
    (row,) = pack([long])
    assert row.batch.tokens.shape == (1, 3072)
    (result,) = score_requests(model, [long])
    logs = decode_by_hand(model, long.ids)
    expected = logs[np.arange(2089, 2099), long.ids[2090:]]
    np.testing.assert_allclose(result.token_log_probs, expected, atol=5e-4)


def test_a_request_that_the_model_cannot_take_is_refused_by_its_row(model):
    ids = np.arange(9000, dtype=np.int32) % 61
    long = Request(ids=ids, spans=((8990, 9000),), num_bytes=0, row=4)
    with pytest.raises(PromptError, match="8192") as caught:
        list(score_requests(model, [request(5), long]))
    assert caught.value.row == "row 5"
    unknown = Request(ids=np.array([3, 61], np.int32), spans=((1, 2),), num_bytes=0, row=2)
    with pytest.raises(PromptError) as caught:
        list(score_requests(model, [unknown]))
    assert caught.value.row == "row 3"


def test_what_comes_before_a_bad_request_is_scored_first(model):
    good = [request(9, seed=n) for n in range(3)]
    bad = Request(ids=np.array([0, 10**6], np.int32), spans=((1, 2),), num_bytes=0)
    results = score_requests(model, [*good, bad, *good])
    assert [next(results).request for _ in good] == good
    with pytest.raises(PromptError, match="not one of the model's"):
        next(results)


def test_rows_are_computed_on_the_device_that_the_caller_chose(model, monkeypatch):
    seen = []
    real = engine._token_scores

    def spy(*args, **options):
        scores = real(*args, **options)
        seen.append(scores.log_prob.devices())
        return scores

    monkeypatch.setattr(engine, "_token_scores", spy)
    device = jax.devices()[2]
    with jax.default_device(device):
        list(score_requests(model, [request(9)]))
    assert seen == [{device}]
