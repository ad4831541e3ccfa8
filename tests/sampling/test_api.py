"""`sample`, `choose` and `beam_search`: from examples to text."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

import instructjax as ij
from instructjax.display.progress import ScoringProgress
from instructjax.sampling import Sampler, SamplingRules
from instructjax.sampling.api import check_count
from instructjax.sampling.beam import search
from instructjax.sampling.responses import PromptToSample
from instructjax.sampling.rules import is_temperature

EXAMPLES = [
    ij.Example(instruction="Name it.", input="the sea", id="a", task="t", instruction_id="c1"),
    ij.Example(instruction="Say more about it.", input_id="z2"),
    ij.Example(prompt_ids=[5, 6, 7], id="given"),
]


@pytest.fixture(scope="module")
def samples(tiny_model: Any) -> ij.Samples:
    return ij.sample(tiny_model, EXAMPLES, max_new_tokens=10, num_samples=2, seed=1)


def test_names_numbers_and_table(samples: ij.Samples) -> None:
    assert samples.ids == ["a", "a", "row 2", "row 2", "given", "given"]
    assert samples.sample.tolist() == [0, 1] * 3
    columns = samples.to_arrow().to_pydict()
    assert columns["task"][:3] == ["t", "t", None]
    assert columns["instruction_id"][0] == "c1" and columns["input_id"][2] == "z2"
    frame = samples.to_pandas()
    assert frame["output"].tolist() == samples.text and frame.attrs["seed"] == "1"
    np.testing.assert_allclose(
        samples.log_prob, [logs.sum(dtype=np.float64) for logs in samples.token_log_probs]
    )
    assert samples[1].text == samples[1:3].text[0] == samples[np.array([1])].text[0]
    assert "Samples(6 rows" in repr(samples) and "row 2 #0" in repr(samples)


@pytest.mark.slow
def test_the_display_escapes_what_the_model_writes(samples: ij.Samples, tiny_model: Any) -> None:
    shown = samples._repr_html_()
    assert "log Pr" in shown and shown.count("<span") > samples.num_tokens.sum()
    assert "<script" not in shown
    odd = ij.sample(tiny_model, ij.Example(instruction="x", id="<b>"), max_new_tokens=2)
    assert "&lt;b&gt;" in odd._repr_html_()


def test_law_4_for_text(samples: ij.Samples, tiny_model: Any) -> None:
    """Scoring the ids after the rendered prompt gives what sampling reported, to the bit."""
    encoder = ij.make_encoder(tiny_model)
    (prompt,) = encoder.encode(
        ij.Example(instruction="Name it.", input="the sea", output="x"), row=0
    )
    ids = prompt.ids[: prompt.spans[0][0]]
    searched = ij.beam_search(
        tiny_model, ij.Example(instruction="Name it.", input="the sea"), max_new_tokens=8, beams=2
    )
    for row in (*samples[:2], *searched):
        given = ij.Example(prompt_ids=ids, output_ids=row.token_ids)
        (scored,) = ij.score(tiny_model, given)
        np.testing.assert_array_equal(scored.token_log_probs, row.token_log_probs)


def test_without_scoring_the_decoder_reports_what_it_drew_from(tiny_model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 3}
    scored = ij.sample(tiny_model, EXAMPLES, **options)
    plain = ij.sample(tiny_model, EXAMPLES, **options, score=False)
    for one, other in zip(scored, plain, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_allclose(one.token_log_probs, other.token_log_probs, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(other.token_log_probs, other.sampling_log_probs)
    assert scored.metadata["log_probs"] == "score" and plain.metadata["log_probs"] == "decoder"


@pytest.mark.slow
def test_a_stop_string_ends_the_text_where_it_begins(tiny_model: Any) -> None:
    example = EXAMPLES[0]
    whole = ij.sample(tiny_model, example, max_new_tokens=12, stop_ids=(), temperature=0)
    text = whole.text[0]
    pairs = (text[i : i + 2] for i in range(1, len(text) - 1))
    stop = next(pair for pair in pairs if pair.isascii())
    cut = ij.sample(
        tiny_model, example, max_new_tokens=12, stop_ids=(), temperature=0, stop=[stop, "@@@"]
    )
    assert cut.text == [text[: text.index(stop)]] and cut.finish_reason == ["stop_string"]
    count = int(cut.num_tokens[0])
    assert cut.token_ids[0].tolist() == whole.token_ids[0][:count].tolist()
    assert stop in tiny_model.tokenizer.decode(cut.token_ids[0])


@pytest.mark.slow
def test_every_end_of_turn_stops(tiny_model: Any) -> None:
    (first,) = ij.sample(tiny_model, EXAMPLES[0], max_new_tokens=6, temperature=0, stop_ids=())
    second, third = int(first.token_ids[1]), int(first.token_ids[2])
    assert first.token_ids[0] not in (second, third)
    for stops in ((second, third), (third, second)):
        (made,) = ij.sample(
            tiny_model, EXAMPLES[0], max_new_tokens=6, temperature=0, stop_ids=stops
        )
        assert made.token_ids.tolist() == first.token_ids[:2].tolist()
        assert made.finish_reason == "stop_token"
        assert made.text == tiny_model.tokenizer.decode(first.token_ids[:1])


@pytest.mark.slow
def test_long_prompts_leave_room_where_they_may_be_cut(tiny_model: Any) -> None:
    long = ij.Example(instruction="more and more " * 80)
    with pytest.raises(ij.PromptError, match="row 1"):
        ij.sample(tiny_model, long, max_new_tokens=20)
    (made,) = ij.sample(
        tiny_model, long, max_new_tokens=20, truncation="left", temperature=0, stop_ids=()
    )
    assert made.num_tokens == 20 and made.status.startswith("truncated=")
    # However much is asked for, half of the model's 256 positions are the prompt's.
    short = ij.Example(prompt_ids=[*range(5, 105)])
    cuts: tuple[dict[str, Any], ...] = ({}, {"truncation": "left"})
    for options in cuts:
        (made,) = ij.sample(tiny_model, short, max_new_tokens=1000, stop_ids=(), **options)
        assert (made.num_tokens, made.status) == (157, "ok")


def test_prompt_and_response_are_max_length_at_most(tiny_model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 100, "stop_ids": ()}
    prompt = ij.Example(prompt_ids=[*range(5, 25)])
    for longest in (21, 40):
        (made,) = ij.sample(tiny_model, prompt, max_length=longest, **options)
        assert made.num_tokens == longest - 20
    (best,) = ij.beam_search(tiny_model, prompt, max_length=24, **options)
    assert best.num_tokens == 4
    with pytest.raises(ij.PromptError, match="prompt_ids are 20 tokens, and at most 19"):
        ij.sample(tiny_model, prompt, max_length=20, **options)
    # The last token needs no position, so a prompt may take all that the model has.
    (made,) = ij.sample(tiny_model, ij.Example(prompt_ids=[7] * 256), **options)
    assert made.num_tokens == 1


def test_numbers_that_are_not_finite_are_told(tiny_model: Any) -> None:
    params = jax.tree.map(lambda x: x * np.nan, tiny_model.params)
    broken = dataclasses.replace(tiny_model, params=params)
    samples = ij.sample(broken, EXAMPLES[0], max_new_tokens=3, stop_ids=())
    assert samples[0].status == "not_finite"
    (row,) = samples.to_arrow().to_pylist()
    assert row["log_prob"] is None and row["token_log_probs"] == [None] * 3
    assert ij.beam_search(broken, EXAMPLES[0], max_new_tokens=2)[0].status == "not_finite"
    with pytest.raises(ij.DataError, match="a: log Pr of a response is not finite"):
        ij.choose(broken, dataclasses.replace(EXAMPLES[0], output=["x", "y"]))


def test_numbers_of_numpy_will_do() -> None:
    assert check_count("n", np.int64(3)) == 3 and is_temperature(np.float32(0.5))
    for wrong in (True, 1.5, "3", None):
        with pytest.raises(ij.UsageError, match="n is"):
            check_count("n", wrong)


def test_wrong_calls(tiny_model: Any) -> None:
    calls: list[dict[str, Any]] = [
        {"max_new_tokens": 0},
        {"num_samples": True},
        {"temperature": -0.1},
        {"temperature": 1e-40},
        {"repetition_penalty": 1e-40},
    ]
    for wrong in calls:
        with pytest.raises(ij.UsageError, match=next(iter(wrong))):
            ij.sample(tiny_model, EXAMPLES, **wrong)
    with pytest.raises(ij.DataError, match="row 1: no instruction and no input"):
        ij.sample(tiny_model, ij.Example())


@pytest.mark.slow
def test_choices_are_drawn_by_their_exact_posterior(random_model: Any, decode_by_hand: Any) -> None:
    model = random_model()
    prompt, outputs = [3, 1, 4], [[5, 6], [5, 7, 8], [9], [5, 7, 2]]
    logs = []
    for y in outputs:
        table = decode_by_hand(model, prompt + y)
        logs.append(sum(table[2 + k, token] for k, token in enumerate(y)))
    exact = np.exp(np.array(logs) / 2.5)
    exact /= exact.sum()
    examples = [ij.Example(prompt_ids=prompt, output_ids=outputs, id=f"{i}") for i in range(3000)]
    choices = ij.choose(model, examples, temperature=2.5)
    np.testing.assert_allclose(choices[0].posterior, exact, rtol=1e-4)
    counts = np.bincount([choice.index for choice in choices], minlength=4)
    assert (exact * 3000 > 5).all()
    assert stats.chisquare(counts, exact * 3000).pvalue > 1e-3
    best = ij.choose(model, examples[:1], temperature=0)[0]
    assert best.index == int(np.argmax(logs))
    again = ij.choose(model, examples[5:6], temperature=2.5)[0]
    assert again.index == choices[5].index


@pytest.fixture(scope="module")
def small(random_model: Any) -> Any:
    return random_model(vocab_size=4, seed=4)


def log_probs_of_all(model: Any, decode_by_hand: Any, prompt: list[int], length: int, stop: int):
    """log Pr of every response that ends with `stop` or has `length` tokens, by loops."""
    found = {}
    for y in itertools.product(range(4), repeat=length):
        y = y[: y.index(stop) + 1] if stop in y else y
        if y not in found:
            table = decode_by_hand(model, [*prompt, *y])
            found[y] = sum(table[len(prompt) - 1 + k, token] for k, token in enumerate(y))
    return found


@pytest.mark.slow
def test_a_wide_beam_finds_the_best_of_all(small: Any, decode_by_hand: Any) -> None:
    prompt, length = [1, 2], 3
    every = log_probs_of_all(small, decode_by_hand, prompt, length, 0)
    best = sorted(every.items(), key=lambda item: -item[1])
    sampler = Sampler(small, rules=SamplingRules(temperature=0), stop_ids=(0,))
    asked = PromptToSample(ids=np.array(prompt, np.int32), name="a", max_new_tokens=length)
    found = search(sampler, asked, 40)
    assert [tuple(one.ids.tolist()) for one in found] == [y for y, _ in best]
    logs = [float(one.token_log_probs.sum()) for one in found]
    np.testing.assert_allclose(logs, [log_prob for _, log_prob in best], atol=1e-4)
    assert {one.finish_reason for one in found} == {"stop_token", "length"}


@pytest.mark.slow
def test_a_narrow_beam_is_the_one_written_out(small: Any, decode_by_hand: Any) -> None:
    """Keeps the best unfinished beams, step by step, with nothing shared and no cache."""
    prompt, length, width = [3, 2, 1], 5, 2
    alive, done = [((), 0.0)], []
    for _ in range(length):
        grown = []
        for y, total in alive:
            table = decode_by_hand(small, [*prompt, *y])[-1]
            grown += [((*y, token), total + table[token]) for token in range(4)]
        grown.sort(key=lambda item: -item[1])
        alive = []
        for y, total in grown:
            if len(alive) == width:
                break
            (done if y[-1] == 0 else alive).append((y, total))
    best = sorted(done + alive, key=lambda item: -item[1])[:width]
    sampler = Sampler(small, rules=SamplingRules(temperature=0), stop_ids=(0,))
    asked = PromptToSample(ids=np.array(prompt, np.int32), name="a", max_new_tokens=length)
    found = search(sampler, asked, width)
    assert [tuple(one.ids.tolist()) for one in found] == [y for y, _ in best]


@pytest.mark.slow
def test_beams_of_text(tiny_model: Any) -> None:
    found = ij.beam_search(tiny_model, EXAMPLES[:2], beams=3, num_samples=2, max_new_tokens=4)
    assert found.ids == ["a", "a", "row 2", "row 2"]
    assert found.log_prob[0] >= found.log_prob[1] and found.log_prob[2] >= found.log_prob[3]
    greedy = ij.sample(tiny_model, EXAMPLES[:2], temperature=0, max_new_tokens=4)
    one = ij.beam_search(tiny_model, EXAMPLES[:2], beams=1, max_new_tokens=4)
    assert one.text == greedy.text


def test_beam_search_tells_how_far_it_is(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        ScoringProgress, "update", lambda self, rows, tokens: told.append((rows, tokens))
    )
    examples = [ij.Example(instruction=f"Name {i}.") for i in range(2)]
    found = ij.beam_search(tiny_model, examples, beams=2, max_new_tokens=3, stop_ids=())
    assert len(found) == 2
    # Two beams, three steps for each of two examples; told before each step.
    assert told == [(0, 0), (0, 2), (0, 4), (1, 6), (1, 8), (1, 10)]
