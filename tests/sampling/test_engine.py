"""Sampling against scoring (law 4), and that nothing but its own prompt decides a response."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instructjax as ij
from instructjax.errors import PromptError, UsageError
from instructjax.models.config import RopeConfig
from instructjax.prompts.request import Request
from instructjax.sampling import PromptToSample, Sampled, Sampler, SamplingRules, engine
from instructjax.scoring.engine import score_requests
from instructjax.sharding import make_mesh

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama-tied"
RULES = {
    "drawn": SamplingRules(),
    "greedy": SamplingRules(temperature=0),
    "all rules": SamplingRules(
        temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2
    ),
}


def run(model: Any, prompts: list[PromptToSample], **options: Any) -> list[Sampled]:
    sampler = Sampler(model, **{"rules": RULES["drawn"], "stop_ids": (3, 4), "seed": 7, **options})
    return sorted(sampler.sample(prompts), key=lambda made: (made.prompt, made.sample))


def same_bits(a: list[Sampled], b: list[Sampled]) -> bool:
    return all(
        x.ids.tolist() == y.ids.tolist()
        and (x.token_log_probs == y.token_log_probs).all()
        and (x.sampling_log_probs == y.sampling_log_probs).all()
        for x, y in zip(a, b, strict=True)
    )


def scores_of(model: Any, prompts: list[PromptToSample], made: list[Sampled]) -> list[np.ndarray]:
    requests = []
    for one in made:
        prompt = prompts[one.prompt].ids
        ids, size = np.concatenate([prompt, one.ids]), len(prompt)
        requests.append(Request(ids=ids, spans=((size, len(ids)),), num_bytes=0))
    return [scored.token_log_probs for scored in score_requests(model, requests)]


def test_law_4_log_probs_are_those_of_scoring(any_model: Any, prompts: list[Any]) -> None:
    made = run(any_model, prompts)
    assert len(made) == sum(prompt.num_samples for prompt in prompts)
    for one, expected in zip(made, scores_of(any_model, prompts, made), strict=True):
        np.testing.assert_allclose(one.token_log_probs, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.sampling_log_probs, expected, rtol=0, atol=1e-5)
        assert len(one.ids) <= prompts[one.prompt].max_new_tokens
        stopped = np.isin(one.ids, (3, 4))
        assert not stopped[:-1].any()
        assert one.finish_reason == ("stop_token" if stopped[-1] else "length")


def test_greedy_takes_what_scoring_calls_greedy(any_model: Any, prompts: list[Any]) -> None:
    made = run(any_model, prompts, rules=RULES["greedy"])
    for one in made:
        prompt = prompts[one.prompt].ids
        ids, size = np.concatenate([prompt, one.ids]), len(prompt)
        (scored,) = score_requests(
            any_model, [Request(ids=ids, spans=((size, len(ids)),), num_bytes=0)]
        )
        assert scored.greedy.all()
        assert (one.sampling_log_probs == 0).all()


@pytest.fixture(
    scope="module",
    params=["drawn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("greedy", "all rules"))],
)
def whole(request: pytest.FixtureRequest, random_model: Any, prompts: list[Any]) -> Any:
    """(model, rules, what all prompts together give)."""
    model, rules = random_model(), RULES[request.param]
    return model, rules, run(model, prompts, rules=rules)


def test_order_and_company_change_no_bit(whole: Any, prompts: list[Any]) -> None:
    model, rules, made = whole
    for order in ([6, 5, 4, 3, 2, 1, 0], [2, 4], [5, 0, 3, 0]):
        chosen = [prompts[i] for i in order]
        expected = [one for i in order for one in made if one.prompt == i]
        assert same_bits(run(model, chosen, rules=rules), expected)
    crowd = [
        dataclasses.replace(prompts[i % 7], name=f"other {i}", num_samples=2) for i in range(20)
    ]
    crowded = run(model, [*crowd[:9], *prompts, *crowd[9:]], rules=rules)
    assert same_bits([one for one in crowded if 9 <= one.prompt < 16], made)


@pytest.mark.slow
def test_alone_in_a_slot_it_writes_the_same(whole: Any, prompts: list[Any]) -> None:
    model, rules, made = whole
    for i in (1, 4):
        (alone,) = run(model, [dataclasses.replace(prompts[i], num_samples=1)], rules=rules)
        first = next(one for one in made if one.prompt == i and one.sample == 0)
        assert alone.ids.tolist() == first.ids.tolist()
        np.testing.assert_allclose(alone.token_log_probs, first.token_log_probs, atol=1e-5)


@pytest.mark.slow
def test_slots_and_mesh_write_the_same(whole: Any, prompts: list[Any], mesh: Any) -> None:
    model, rules, made = whole
    others = run(model, prompts, rules=rules, slots=3)
    for one, other in zip(made, others, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(other.token_log_probs, one.token_log_probs, atol=1e-5)
    # Each device runs the program of one device.
    assert same_bits(run(model, prompts, rules=rules, mesh=mesh), made)


def test_a_model_on_a_mesh_writes_there(prompts: list[Any], tiny_model: Any) -> None:
    grid = make_mesh("data=2,fsdp=2,tensor=2")
    split = ij.load_model(FIXTURE, mesh=grid)
    example = ij.Example(instruction="Say it.")
    found, expected = (
        ij.sample(model, example, max_new_tokens=5, num_samples=3) for model in (split, tiny_model)
    )
    assert same_bits([row.sampled for row in found], [row.sampled for row in expected])
    best, same = (ij.beam_search(model, example, max_new_tokens=3) for model in (split, tiny_model))
    assert best[0].token_ids.tolist() == same[0].token_ids.tolist()


@pytest.mark.slow
def test_a_choice_by_a_hair_is_made_by_the_usual_program(
    random_model: Any, prompts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    expected = [one for one in run(model, prompts) if one.prompt == 2 and one.sample == 0]
    monkeypatch.setattr("instructjax.sampling.engine.SAFE_MARGIN", np.inf)
    sampler = Sampler(model, rules=RULES["drawn"], stop_ids=(3, 4), seed=7)
    alone = list(sampler.sample([dataclasses.replace(prompts[2], num_samples=1)]))
    assert same_bits(alone, expected)
    assert {("write", 1, 64), ("write", 16, 64)} < sampler.work.programs


@pytest.mark.slow
def test_programs_are_few_and_slots_are_used_again(
    random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructjax.sampling.engine.SAFE_MARGIN", 0.0)
    rng = np.random.default_rng(0)
    many = [
        PromptToSample(
            ids=rng.integers(0, 61, int(size)).astype(np.int32),
            name=f"{i}",
            max_new_tokens=int(rng.integers(1, 20)),
        )
        for i, size in enumerate(rng.integers(1, 90, 60))
    ]
    model = random_model()
    sampler = Sampler(model, rules=RULES["drawn"], stop_ids=(), slots=4)
    before = count_programs()
    made = list(sampler.sample(many))
    after = count_programs()
    assert {len(one.ids) for one in made} > {1, 2, 3} and len(made) == 60
    writing = {program for program in sampler.work.programs if program[0] == "write"}
    assert writing == {("write", 4, 64), ("write", 4, 128)}
    assert after[0] - before[0] <= 2 and after[1] - before[1] <= 6
    # If four began together and waited for the longest of them, about 0.6 of places were used.
    assert sampler.work.new_tokens / sampler.work.places > 0.75
    again = Sampler(model, rules=SamplingRules(temperature=0.3), stop_ids=(), slots=4)
    list(again.sample(many))
    assert count_programs() == after


def count_programs() -> tuple[int, int]:
    from instructjax.sampling import slots

    programs: list[Any] = [slots.write, slots.admit]
    return programs[0]._cache_size(), programs[1]._cache_size()


@pytest.mark.slow
def test_another_seed_name_or_sample_writes_something_else(
    random_model: Any, prompts: list[Any]
) -> None:
    model, prompt = random_model(), dataclasses.replace(prompts[2], num_samples=3)
    texts = [tuple(one.ids.tolist()) for one in run(model, [prompt])]
    texts += [tuple(one.ids.tolist()) for one in run(model, [prompt], seed=8)]
    renamed = dataclasses.replace(prompt, name="another")
    texts += [tuple(one.ids.tolist()) for one in run(model, [renamed])]
    assert len(set(texts)) == 9


@pytest.mark.slow
def test_a_response_ends_where_the_model_does(random_model: Any) -> None:
    model = random_model(max_positions=12)
    prompt = PromptToSample(ids=np.arange(10, dtype=np.int32), name="a", max_new_tokens=50)
    (made,) = run(model, [prompt], stop_ids=())
    assert (len(made.ids), made.finish_reason) == (3, "length")
    assert np.abs(scores_of(model, [prompt], [made])[0] - made.token_log_probs).max() < 1e-5


def test_what_cannot_be_written_is_refused(random_model: Any) -> None:
    model = random_model(max_positions=12)

    def ask(ids: list[int]) -> None:
        run(model, [PromptToSample(ids=np.array(ids, np.int32), name="row 3")])

    for ids, message in (
        ([], "row 3: the prompt is empty"),
        ([61], "row 3: a token id is not one of the model's 61"),
        ([1] * 13, "row 3: 13 tokens, and at most 12 leave room for a response"),
    ):
        with pytest.raises(PromptError, match=message):
            ask(ids)
    with pytest.raises(UsageError, match="stop token 61"):
        Sampler(model, rules=RULES["drawn"], stop_ids=(61,))
    with pytest.raises(UsageError, match="stop string ''"):
        Sampler(model, rules=RULES["drawn"], stop=("",))
    with pytest.raises(UsageError, match="slots is 0"):
        Sampler(model, rules=RULES["drawn"], slots=0)
    with pytest.raises(UsageError, match="no UTF-8"):
        Sampler(model, rules=RULES["drawn"], stop="\ud800")
    for wrong in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"min_p": 2}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            SamplingRules(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="repetition_penalty"):
        SamplingRules(repetition_penalty=0)


@pytest.mark.slow
def test_positions_that_turn_by_the_length_of_the_whole(random_model: Any) -> None:
    rope = RopeConfig(kind="dynamic", factor=2.0, original_max_positions=20)
    model = random_model(rope=rope)
    ids = np.arange(15, dtype=np.int32)
    within, beyond = (PromptToSample(ids=ids, name="row 3", max_new_tokens=n) for n in (6, 7))
    (made,) = run(model, [within], stop_ids=())
    assert np.abs(scores_of(model, [within], [made])[0] - made.token_log_probs).max() < 1e-5
    with pytest.raises(PromptError, match=r"row 3: .*original context.*at most 6 new"):
        run(model, [within, beyond])
    long = PromptToSample(ids=np.arange(30, dtype=np.int32), name="row 4", max_new_tokens=1)
    with pytest.raises(PromptError, match="row 4: .*shorten the prompt"):
        run(model, [long])


def test_law_4_beyond_the_original_context_of_longrope(random_model: Any) -> None:
    """What turns by the second list from its first token on may grow; what would pass, not."""
    rng = np.random.default_rng(0)
    short, long = (tuple(rng.uniform(1, 4, 2).tolist()) for _ in range(2))
    rope = RopeConfig(
        kind="longrope", divisors=short, long_divisors=long, original_max_positions=20
    )
    model = random_model(rope=rope)
    prompts = [
        PromptToSample(ids=rng.integers(0, 61, size, np.int32), name=f"{size}", max_new_tokens=8)
        for size in (10, 22, 30)
    ]
    made = run(model, prompts, stop_ids=())
    for one, expected in zip(made, scores_of(model, prompts, made), strict=True):
        assert len(one.ids) == 8
        np.testing.assert_allclose(one.token_log_probs, expected, rtol=0, atol=1e-5)
    for size, remedy in ((18, "at most 3 new tokens"), (21, "shorten the prompt")):
        ids = np.arange(size, dtype=np.int32)
        with pytest.raises(PromptError, match=f"row 5: .*original context.*{remedy}"):
            run(model, [PromptToSample(ids=ids, name="row 5", max_new_tokens=8)])


def test_a_cache_that_memory_cannot_hold_is_refused(
    random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    monkeypatch.setattr(engine, "free_bytes", lambda: 1e6)
    few, many = (
        PromptToSample(ids=np.arange(3, dtype=np.int32), name="a", num_samples=2, max_new_tokens=n)
        for n in (8, 4000)
    )
    assert len(run(model, [few])) == 2
    with pytest.raises(UsageError, match=r"16 slots of 4,096 tokens take .* fewer slots"):
        run(model, [many])
