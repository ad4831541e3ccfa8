"""What the harness wants written: `generation_kwargs`, contexts, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import instructjax as ij
from instructjax.data.example import Example
from instructjax.errors import PromptError, UsageError
from instructjax.integrations.lm_eval import InstructJaxLM
from instructjax.integrations.lm_eval_generate import MAX_NEW_TOKENS, parse_generation

CONTEXTS = ["the se", "Question: is it wet?\nAnswer:", "and", "One sentence about the sea. "]


@pytest.fixture
def want() -> Callable[..., list[Any]]:
    """Requests of the harness to write up to 6 tokens after each context."""
    from lm_eval.api.instance import Instance

    def make(contexts: list[str], **kwargs: Any) -> list[Any]:
        rules = {"until": [], "max_gen_toks": 6, **kwargs}
        return [
            Instance("generate_until", {}, (context, rules), 0, ("made", i, 1))
            for i, context in enumerate(contexts)
        ]

    return make


@pytest.mark.parametrize("boundary", ["exact", "joint"])
def test_contexts_are_answered_whole(tiny_model: Any, want: Any, boundary: Any) -> None:
    """Greedy text is that of the context's own ids, whatever the boundary of scored pairs."""
    ids = [tiny_model.tokenizer.encode(context) for context in CONTEXTS]
    examples = [Example(prompt_ids=tuple(map(int, one))) for one in ids]
    expected = ij.sample(tiny_model, examples, temperature=0.0, max_new_tokens=6)
    written = InstructJaxLM(tiny_model, boundary=boundary).generate_until(want(CONTEXTS))
    assert written == [row.text for row in expected]


def test_cut_contexts_are_told(
    tiny_model: Any, want: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of a cut context is its end, and there is room for the response."""
    long = "the sea and more. " * 40
    with pytest.raises(PromptError, match="task made, document 1"):
        InstructJaxLM(tiny_model, max_length=40).generate_until(want(["short", long]))
    lm = InstructJaxLM(tiny_model, max_length=40, truncation="left")
    with caplog.at_level(logging.WARNING):
        texts = lm.generate_until(want(["short", long, long]))
    assert dict(lm.flags) == {"truncated": 2} and "of 3 requests: 2 truncated" in caplog.text
    assert (lm.num_written, lm.num_scored) == (3, 0) and 3 <= lm.num_new_tokens <= 18
    ids = tiny_model.tokenizer.encode(long)
    kept = Example(prompt_ids=tuple(int(i) for i in ids[-(40 - 6) :]))
    (expected,) = ij.sample(tiny_model, kept, temperature=0.0, max_new_tokens=6)
    assert texts[1] == texts[2] == expected.text


def test_rules() -> None:
    rules, stops, length = parse_generation({"temperature": 0.5, "top_k": 3, "until": ["a", ""]})
    assert (rules.temperature, rules.top_k, stops, length) == (0.5, 3, ("a",), MAX_NEW_TOKENS)
    greedy = {"do_sample": False, "temperature": 0.9, "top_p": 0.5, "repetition_penalty": 1.5}
    rules, _, length = parse_generation({**greedy, "max_new_tokens": 3})
    assert (rules.greedy, rules.top_p, rules.repetition_penalty, length) == (True, 1.0, 1.5, 3)
    assert parse_generation({"num_beams": 1, "num_return_sequences": 1})[0].greedy
    assert parse_generation({"temperature": 0.0, "top_k": 5})[0] == replace(
        rules, repetition_penalty=1.0
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 4}, "num_beams: 4"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"do_sample": False, "top_p": 7}, "top_p is 7"),
        ({"max_gen_toks": "many"}, "tokens to write are 'many'"),
        ({"max_gen_toks": 0}, "tokens to write are 0"),
        ({"until": ["a", 3]}, "until is"),
        ({"seed": "x"}, "seed is 'x'"),
    ],
)
def test_what_cannot_be_done_names_the_request(
    tiny_model: Any, want: Any, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        InstructJaxLM(tiny_model).generate_until(want(["a"], **kwargs))
    assert caught.value.row == "task made, document 0, request 0"
    assert caught.value.remedy
