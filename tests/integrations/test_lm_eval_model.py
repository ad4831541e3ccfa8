"""`InstructJaxLM`: the harness' strings, and the numbers of `score` and of numpy loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from instructjax.data import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.integrations import lm_eval as integration
from instructjax.integrations.lm_eval import InstructJaxLM
from instructjax.models import load_model
from instructjax.prompts import Request
from instructjax.scoring import score

pytestmark = pytest.mark.filterwarnings("ignore")

FIXTURES = Path(__file__).parents[1] / "fixtures"
PAIRS = [
    ("Is the sea wet?", " yes"),
    ("Is the sea wet?", " of course not"),
    ("The answer: ", "two"),
    ("Say\n", "é 日本 and more"),
    ("", "and so"),
    ("7 " * 60, "8"),
]


@pytest.fixture(scope="module")
def lm(tiny_model: Any) -> InstructJaxLM:
    return InstructJaxLM(tiny_model)


@pytest.fixture(scope="module")
def bos_model() -> Any:
    """Its tokenizer adds BOS (<s>, id 0) and its template writes it."""
    return load_model(FIXTURES / "llama-untied")


def encode(model: Any, text: str) -> list[int]:
    return model.tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_numbers_are_those_of_score(lm: Any, ask: Callable[..., Any]) -> None:
    pairs = [pair for pair in PAIRS if pair[0]]
    answers = lm.loglikelihood([ask(*pair) for pair in pairs])
    examples = [Example(instruction=c, output=y) for c, y in pairs]
    scores = score(lm.model, examples, layout="raw", include_eos=False, progress=False)
    np.testing.assert_allclose([a for a, _ in answers], scores.log_prob, rtol=0, atol=1e-5)
    assert [greedy for _, greedy in answers] == scores.greedy.tolist()
    assert all(type(a) is float and type(g) is bool for a, g in answers)


def test_numbers_are_those_of_numpy_loops(
    lm: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    answers = lm.loglikelihood([ask(*pair) for pair in PAIRS])
    bos = lm.model.tokenizer.bos_id
    for (context, continuation), (found, _) in zip(PAIRS, answers, strict=True):
        prompt = encode(lm.model, context) or [bos]
        response = encode(lm.model, continuation)
        assert lm.model.tokenizer.decode(response) == continuation
        expected = sum_by_hand(lm.model, prompt + response, len(response))
        assert found == pytest.approx(expected, abs=1e-4)


def test_law_2_a_number_does_not_depend_on_the_other_requests(
    lm: Any, ask: Callable[..., Any]
) -> None:
    requests = [ask(*pair) for pair in PAIRS]
    together = lm.loglikelihood(requests)
    backwards = lm.loglikelihood(requests[::-1])[::-1]
    alone = [lm.loglikelihood([request])[0] for request in requests]
    for others in (backwards, alone):
        np.testing.assert_allclose([a for a, _ in together], [a for a, _ in others], atol=1e-5)


def test_greedy(lm: Any, ask: Callable[..., Any], decode_by_hand: Callable[..., Any]) -> None:
    tried = 0
    for context in ("Is the sea wet?", "1 + 1 =", "Say nothing.", "The capital", "more", "7 8 9"):
        best = int(decode_by_hand(lm.model, encode(lm.model, context))[-1].argmax())
        text = lm.model.tokenizer.token_text(best)
        if encode(lm.model, text) == [best]:
            tried += 1
            other = "yes" if text != "yes" else "no"
            found = lm.loglikelihood([ask(context, text), ask(context, other)])
            assert [greedy for _, greedy in found] == [True, False]
    assert tried


def test_joint_boundary(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    lm = InstructJaxLM(tiny_model, boundary="joint")
    (found, _), _ = lm.loglikelihood([ask("hel", "lo"), ask("Is it?", " no")])
    whole = encode(tiny_model, "hello")
    assert [tiny_model.tokenizer.token_text(i) for i in whole] == ["he", "ll", "o"]
    assert found == pytest.approx(sum_by_hand(tiny_model, whole, 2), abs=1e-4)
    assert lm.flags == {"spans_join": 1}


def test_too_long_is_an_error_that_names_the_document(lm: Any, ask: Callable[..., Any]) -> None:
    with pytest.raises(PromptError, match=r"task made, document 7, request 2: .* 256"):
        lm.loglikelihood([ask("a", "b"), ask("7 " * 300, "8", document=7, request=2)])
    with pytest.raises(PromptError, match=r"task made, document 7, request 1: .*empty"):
        lm.loglikelihood([ask("a", "", document=7, request=1)])


@pytest.mark.parametrize("spelled", ["", "<s>"])
def test_cutting_a_context_keeps_bos(
    bos_model: Any,
    ask: Callable[..., Any],
    sum_by_hand: Callable[..., float],
    caplog: pytest.LogCaptureFixture,
    spelled: str,
) -> None:
    lm = InstructJaxLM(bos_model, truncation="left", max_length=12)
    context = "the " * 30
    found, _ = lm.loglikelihood([ask(spelled + context, "and so")])[0]
    response = encode(bos_model, "and so")
    prompt = [0, *encode(bos_model, context)[-(11 - len(response)) :]]
    assert len(prompt) + len(response) == 12
    assert found == pytest.approx(
        sum_by_hand(bos_model, prompt + response, len(response)), abs=1e-4
    )
    assert lm.flags["truncated"] == 1
    assert "of 1 requests: 1 truncated" in caplog.text


def test_one_bos(
    bos_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    lm = InstructJaxLM(bos_model)
    prompt, response = encode(bos_model, "Is it?"), encode(bos_model, " no")
    expected = sum_by_hand(bos_model, [0, *prompt, *response], len(response))
    for context in ("Is it?", "<s>Is it?"):
        assert lm.loglikelihood([ask(context, " no")])[0][0] == pytest.approx(expected, abs=1e-4)


def test_bos_of_a_conversation_is_the_templates(bos_model: Any, ask: Callable[..., Any]) -> None:
    """A template that writes none gets none, as in `score`, although the tokenizer would add it."""
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    tokenizer = dataclasses.replace(bos_model.tokenizer, chat_template=template)
    model = dataclasses.replace(bos_model, tokenizer=tokenizer)
    lm = InstructJaxLM(model)
    history = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Is it?"}]
    for turns, example in (
        (history[1:], Example(instruction="Is it?", output="no")),
        (history, Example(instruction="Is it?", output="no", system="Be short.")),
    ):
        found, _ = lm.loglikelihood([ask(lm.apply_chat_template(turns), "no")])[0]
        wanted = score(model, example, include_eos=False, progress=False)
        assert wanted[0].scored.request.ids[0] != 0
        assert found == pytest.approx(wanted.log_prob[0], abs=1e-5)


@pytest.mark.parametrize("name", ["llama-tied", "llama-untied"])
def test_conversations_are_rendered_as_by_transformers(name: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(FIXTURES / name)
    lm = InstructJaxLM(str(FIXTURES / name))
    history = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "And now?"},
    ]
    for turns in (history, history[1:], history[:2], history[1:2]):
        wanted = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert lm.apply_chat_template(turns) == wanted
    begun = [*history, {"role": "assistant", "content": "The answer is"}]
    wanted = theirs.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == wanted
    assert wanted.endswith("The answer is")
    assert lm.chat_template(True) == theirs.chat_template
    assert lm.chat_template() == ""
    assert lm.tokenizer_name.startswith(name)
    with pytest.raises(UsageError, match="'tool_use'"):
        lm.chat_template("tool_use")


def test_a_model_without_a_chat_template() -> None:
    lm = InstructJaxLM(FIXTURES / "llama-bias")
    with pytest.raises(PromptError, match="llama-bias has no chat template; .*--apply-chat"):
        lm.apply_chat_template([{"role": "user", "content": "Is it?"}])


@pytest.mark.parametrize("bos", ["every", "first"])
@pytest.mark.parametrize("words", [1, 5, 12, 40])
def test_rolling_windows_are_the_harness_own(
    tiny_model: Any,
    ask: Callable[..., Any],
    sum_by_hand: Callable[..., float],
    words: int,
    bos: Any,
) -> None:
    """With `rolling_bos="first"`; else BOS is where the oldest token of later windows was."""
    width, bos_id = 16, tiny_model.tokenizer.bos_id
    text = "the sea and more. " * words
    ids = encode(tiny_model, text)
    expected, count = 0.0, 0
    windows = get_rolling_token_windows(ids, bos_id, width, 1)
    for seen, predicted in map(make_disjoint_window, windows):
        if bos == "every":
            seen = [bos_id, *seen[1:]]
        expected += sum_by_hand(tiny_model, seen + predicted, len(predicted))
        count += len(predicted)
    assert count == len(ids)
    lm = InstructJaxLM(tiny_model, max_length=width, rolling_bos=bos)
    short, found = lm.loglikelihood_rolling([ask("sea"), ask(text)])
    assert found == pytest.approx(expected, abs=2e-4)
    assert short == pytest.approx(lm.loglikelihood_rolling([ask("sea")])[0], abs=1e-5)


def test_rolling_texts_that_spell_bos_or_are_empty(
    bos_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    lm = InstructJaxLM(bos_model)
    ids = encode(bos_model, "the sea")
    expected = sum_by_hand(bos_model, [0, *ids], len(ids))
    for text in ("the sea", "<s>the sea"):
        assert lm.loglikelihood_rolling([ask(text)])[0] == pytest.approx(expected, abs=1e-4)
    for text in ("", "<s>"):
        with pytest.raises(DataError, match="task made, document 4, request 0: there is no token"):
            lm.loglikelihood_rolling([ask("a"), ask(text, document=4)])


def test_a_chunk_counts_what_is_computed() -> None:
    """Not what a request begins with in common with another one, nor the last token."""
    ids = [[1, 2, 3, 4], [9, 2], [1, 2, 3, 5, 6], [9, 2, 3]]
    requests = [
        Request(ids=np.asarray(one, np.int32), spans=((1, len(one)),), num_bytes=0) for one in ids
    ]
    for tokens, sizes in ((1, [1, 1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1]), (6, [4])):
        stream = iter(requests)
        chunks = iter(lambda n=tokens, s=stream: integration._take(s, n), [])
        assert [len(chunk) for chunk in chunks] == sizes


def test_progress_goes_from_none_to_all(
    tiny_model: Any, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[tuple[int, int]] = []

    class Bar(ScoringProgress):
        def update(self, rows: int, tokens: int) -> None:
            updates.append((rows, tokens))

    monkeypatch.setattr(integration, "ScoringProgress", Bar)
    monkeypatch.setattr(integration, "CHUNK_TOKENS", 40)
    lm = InstructJaxLM(tiny_model, max_length=64)
    lm.loglikelihood([ask(*pair) for pair in PAIRS[:5]])
    lm.loglikelihood_rolling([ask("the sea and more. " * count) for count in (40, 1, 9)])
    ends = [k for k, (rows, _) in enumerate(updates, 1) if [*updates, (0, 0)][k][0] < rows]
    assert len(ends) == 2 and [updates[end - 1][0] for end in ends] == [5, 3]
    for part in (updates[: ends[0]], updates[ends[0] :]):
        assert len(part) > 1 and part == sorted(part)
    assert lm.num_scored == 8


def test_what_it_does_not_do(lm: Any, ask: Callable[..., Any], tiny_model: Any) -> None:
    assert lm.generate_until([]) == [] == lm.loglikelihood([]) == lm.loglikelihood_rolling([])
    with pytest.raises(UsageError, match="max_length is 257"):
        InstructJaxLM(tiny_model, max_length=257)
    assert (lm.rank, lm.world_size) == (0, 1)
