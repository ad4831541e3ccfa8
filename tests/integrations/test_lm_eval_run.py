"""The harness itself, from tasks in a folder to its results, with no network."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest

from instructjax.data import Example
from instructjax.errors import DataError, UsageError
from instructjax.integrations.lm_eval import InstructJaxLM
from instructjax.integrations.lm_eval_tasks import ScoringTasks, find_tasks
from instructjax.models import load_model
from instructjax.scoring import score

from .conftest import QUESTIONS, TEXTS

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "llama-tied"
NUM_CHOICES = sum(len(question["choices"]) for question in QUESTIONS)


def evaluate(manager: Any, task: str, **options: Any) -> Any:
    given = {"model": "instructjax", "model_args": {"pretrained": str(TINY)}, **options}
    run: Any = lm_eval.simple_evaluate
    return run(
        tasks=[task], task_manager=manager, bootstrap_iters=0, torch_random_seed=None, **given
    )


def answers_of(results: Any, task: str) -> list[tuple[str, str, float]]:
    """(context, continuation, log Pr) of every request."""
    return [
        (*arguments, answers[0][0])
        for sample in results["samples"][task]
        for arguments, answers in zip(sample["arguments"], sample["resps"], strict=True)
    ]


def test_by_name_with_arguments(manager: Any, tiny_model: Any) -> None:
    arguments = f"pretrained={TINY},dtype=float32,max_length=200"
    # What the harness' command line gives by default, a device included.
    given = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    results = evaluate(manager, "tiny_choice", model_args=arguments, **given)
    found = answers_of(results, "tiny_choice")
    # Each choice after its question, and for the mutual information after nothing.
    assert len(found) == 2 * NUM_CHOICES
    encode, bos_id = tiny_model.tokenizer.encode, tiny_model.tokenizer.bos_id
    examples = [
        Example(prompt_ids=encode(c).tolist() or [bos_id], output_ids=encode(y).tolist())
        for c, y, _ in found
    ]
    wanted = score(tiny_model, examples, progress=False)
    np.testing.assert_allclose([x for *_, x in found], wanted.log_prob, rtol=0, atol=1e-5)
    right = []
    for question in QUESTIONS:
        context = f"Question: {question['question']}\nAnswer:"
        own = [x for c, y, x in found if c == context and y[1:] in question["choices"]]
        assert len(own) == len(question["choices"])
        right.append(int(np.argmax(own)) == question["label"])
    assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
    about = results["config"]["instructjax"]
    assert about["model_fingerprint"] == tiny_model.fingerprint
    assert about["max_length"] == "200"


def test_an_object_and_an_example_before_each_question(manager: Any, tiny_model: Any) -> None:
    model = InstructJaxLM(tiny_model)
    results = evaluate(manager, "tiny_choice", model=model, model_args=None, num_fewshot=1)
    found = [(c, y, x) for c, y, x in answers_of(results, "tiny_choice") if c]
    assert all(context.count("Question:") == 2 for context, *_ in found)
    examples = [Example(instruction=c, output=y) for c, y, _ in found]
    wanted = score(tiny_model, examples, layout="raw", include_eos=False, progress=False)
    np.testing.assert_allclose([x for *_, x in found], wanted.log_prob, rtol=0, atol=1e-5)
    assert model.num_scored == 2 * NUM_CHOICES


def test_conversations_score_as_the_layout_user(manager: Any, tiny_model: Any) -> None:
    results = evaluate(manager, "tiny_choice", apply_chat_template=True)
    found = [(c, y, x) for c, y, x in answers_of(results, "tiny_choice") if c]
    examples = [
        Example(instruction=f"Question: {question['question']}\nAnswer:", output=y)
        for question in QUESTIONS
        for y in question["choices"]
    ]
    assert [y for _, y, _ in found] == [example.output for example in examples]
    wanted = score(tiny_model, examples, include_eos=False, progress=False)
    np.testing.assert_allclose([x for *_, x in found], wanted.log_prob, rtol=0, atol=1e-5)


def test_examples_as_turns_of_a_conversation(manager: Any, tiny_model: Any) -> None:
    results = evaluate(
        manager,
        "tiny_choice",
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        num_fewshot=1,
        system_instruction="Be short.",
    )
    found = [(c, y, x) for c, y, x in answers_of(results, "tiny_choice") if c]
    for context, *_ in found:
        assert context.startswith("<|im_start|>system\nBe short.<|im_end|>\n")
        assert context.count("<|im_start|>assistant\n") == 2
        assert context.endswith("<|im_start|>assistant\n")
    examples = [Example(instruction=c, output=y) for c, y, _ in found]
    wanted = score(tiny_model, examples, layout="raw", include_eos=False, progress=False)
    np.testing.assert_allclose([x for *_, x in found], wanted.log_prob, rtol=0, atol=1e-5)


def test_perplexity(manager: Any, tiny_model: Any, sum_by_hand: Callable[..., float]) -> None:
    arguments = {"pretrained": str(TINY), "max_length": 32}
    results = evaluate(manager, "tiny_text", model_args=arguments)["results"]["tiny_text"]
    ids = [tiny_model.tokenizer.encode(text).tolist() for text in TEXTS]
    bos = tiny_model.tokenizer.bos_id
    assert len(ids[0]) < 32 < len(ids[1])
    nats = sum_by_hand(tiny_model, [bos, *ids[0]], len(ids[0]))
    for start in range(0, len(ids[1]), 32):
        stop = min(start + 32, len(ids[1]))
        nats += sum_by_hand(tiny_model, [bos, *ids[1][stop - 32 : stop]], stop - start)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    bits = -nats / num_bytes / math.log(2)
    assert results["bits_per_byte,none"] == pytest.approx(bits, abs=1e-5)
    assert results["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-5)


KILLED = """
import os, signal, sys
import instructjax.integrations.lm_eval as integration
from lm_eval import simple_evaluate
from lm_eval.api.model import CacheHook
from lm_eval.tasks import TaskManager

folder, tiny, cache, after = sys.argv[1:]
integration.CHUNK_TOKENS = 100
real, count = CacheHook.add_partial, 0

def add_partial(self, *args):
    global count
    real(self, *args)
    count += 1
    if count == int(after):
        os.kill(os.getpid(), signal.SIGKILL)

CacheHook.add_partial = add_partial
manager = TaskManager(include_path=folder, include_defaults=False)
simple_evaluate(model="instructjax", model_args={"pretrained": tiny}, tasks=["tiny_choice"],
                task_manager=manager, use_cache=cache, torch_random_seed=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 14])
def test_law_8_a_run_that_was_killed_goes_on(
    manager: Any, tasks: Path, tiny_model: Any, tmp_path: Path, after: int
) -> None:
    cache = str(tmp_path / "answers")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tasks), str(TINY), cache, str(after)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    model = InstructJaxLM(tiny_model)
    resumed = evaluate(manager, "tiny_choice", model=model, model_args=None, use_cache=cache)
    # What was yielded before the chunk that it died in is there; some of that chunk may be.
    assert 2 * NUM_CHOICES - after <= model.num_scored < 2 * NUM_CHOICES
    whole = evaluate(manager, "tiny_choice")
    assert [row[:2] for row in answers_of(resumed, "tiny_choice")] == [
        row[:2] for row in answers_of(whole, "tiny_choice")
    ]
    np.testing.assert_allclose(
        [row[2] for row in answers_of(resumed, "tiny_choice")],
        [row[2] for row in answers_of(whole, "tiny_choice")],
        atol=1e-5,
    )
    again = InstructJaxLM(tiny_model)
    evaluate(manager, "tiny_choice", model=again, model_args=None, use_cache=cache)
    assert again.num_scored == 0


def test_a_cache_belongs_to_one_model_and_its_options(
    manager: Any, tiny_model: Any, tmp_path: Path
) -> None:
    cache = str(tmp_path / "answers")
    evaluate(manager, "tiny_text", model=InstructJaxLM(tiny_model), use_cache=cache)
    others = [
        InstructJaxLM(load_model(TINY.with_name("llama-untied"))),
        InstructJaxLM(tiny_model, boundary="joint"),
        InstructJaxLM(tiny_model, max_length=99),
        InstructJaxLM(tiny_model, rolling_bos="first"),
        InstructJaxLM(str(TINY), dtype="bfloat16"),
    ]
    for other in others:
        with pytest.raises(UsageError, match="answers_rank0.db: .*another model"):
            evaluate(manager, "tiny_text", model=other, use_cache=cache)
    same = InstructJaxLM(tiny_model)
    evaluate(manager, "tiny_text", model=same, use_cache=cache)
    assert same.num_scored == 0


def test_a_text_is_cached_when_its_last_window_is_done(
    tiny_model: Any, ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructjax.integrations.lm_eval.CHUNK_TOKENS", 1)
    model = InstructJaxLM(tiny_model, max_length=8)
    kept: list[Any] = []
    model.cache_hook.add_partial = lambda *args: kept.append(args)  # type: ignore[method-assign]
    sums = model.loglikelihood_rolling([ask(text) for text in TEXTS])
    assert kept == [
        ("loglikelihood_rolling", (text,), total) for text, total in zip(TEXTS, sums, strict=True)
    ]


def test_tasks_are_found_by_name_pattern_and_path(tasks: Path) -> None:
    manager, names = find_tasks([" tiny_text", "tiny_ch*"], tasks)
    assert isinstance(manager, ScoringTasks)
    assert names == ["tiny_text", "tiny_choice"]
    assert find_tasks([str(tasks / "choice.yaml")], tasks)[1] == [str(tasks / "choice.yaml")]
    with pytest.raises(UsageError, match="no task is named"):
        find_tasks([" "], tasks)
    with pytest.raises(UsageError, match="is no folder"):
        find_tasks(["tiny_text"], tasks / "choice.yaml")


def test_an_unknown_task_names_those_like_it(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ours(include_path: Any, include_defaults: bool = True) -> ScoringTasks:
        # The harness' own thousands of tasks take long to index.
        return real(include_path=include_path, include_defaults=False)

    real = ScoringTasks
    monkeypatch.setattr("instructjax.integrations.lm_eval_tasks.ScoringTasks", only_ours)
    with pytest.raises(UsageError, match=r"no task 'tiny_coice'; did you mean tiny_choice"):
        find_tasks(["tiny_text", "tiny_coice"], tasks)
    with pytest.raises(UsageError, match=r"no task 'zebra'; see `lm_eval ls tasks`"):
        find_tasks(["zebra"], tasks)


def test_tasks_that_cannot_run_are_refused_before_the_others_do(tasks: Path) -> None:
    broken = tasks / "broken"
    broken.mkdir()
    text = (tasks / "choice.yaml").read_text().replace("questions.jsonl", "nothing.jsonl")
    (broken / "broken.yaml").write_text(text.replace("tiny_choice", "tiny_broken"))
    manager, names = find_tasks(["tiny_broken"], broken)
    with pytest.raises(DataError, match="tiny_broken cannot be loaded .FileNotFoundError"):
        manager.load(names)


def test_results_are_json(manager: Any) -> None:
    from lm_eval.utils import handle_non_serializable

    results = evaluate(manager, "tiny_text")
    again = json.loads(json.dumps(results, default=handle_non_serializable))
    assert again["results"]["tiny_text"] == results["results"]["tiny_text"]


def test_a_task_that_generates_is_run(manager: Any, tiny_model: Any) -> None:
    import instructjax as ij

    results = evaluate(manager, "tiny_writing")
    assert 0 <= results["results"]["tiny_writing"]["exact_match,none"] <= 1
    samples = results["samples"]["tiny_writing"]
    assert len(samples) >= 3
    contexts = [sample["arguments"][0][0] for sample in samples]
    examples = [ij.Example(instruction=context) for context in contexts]
    alone = ij.sample(
        tiny_model, examples, temperature=0, layout="raw", stop=".", max_new_tokens=256
    )
    assert [sample["resps"][0][0] for sample in samples] == alone.text
    assert not any("." in text for text in alone.text)
