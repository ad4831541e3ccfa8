"""Three cases in which the harness' own model is off, and what is right, by numpy loops.

`hf_pair` does to strings what its models for PyTorch do (`TemplateLM._encode_pair`), so that each
test also shows that there is a difference to get wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lm_eval", minversion="0.4.13")

from lm_eval.api.model import TemplateLM

from instructjax.integrations.lm_eval import InstructJaxLM

pytestmark = pytest.mark.filterwarnings("ignore")


def hf_pair(model: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    class Encoder:
        backend = "causal"

        def tok_encode(self, text: str, **_: Any) -> list[int]:
            return model.tokenizer.backend.encode(text, add_special_tokens=False).ids

    pair: Any = TemplateLM._encode_pair
    return pair(Encoder(), context, continuation)


def encode(model: Any, text: str) -> list[int]:
    return model.tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_one_key_for_two_splits(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """`hf` groups requests by context and y without its last token, and gives the shorter y of a
    group numbers from the places of the longer one."""
    pairs = [("more of", " the"), ("more", " of the")]
    encoded = [hf_pair(tiny_model, *pair) for pair in pairs]
    keys = {tuple(prompt + response[:-1]) for prompt, response in encoded}
    assert len(keys) == 1 and len(encoded[0][1]) < len(encoded[1][1])
    expected = [
        sum_by_hand(tiny_model, prompt + response, len(response)) for prompt, response in encoded
    ]
    for order in (slice(None), slice(None, None, -1)):
        answers = InstructJaxLM(tiny_model).loglikelihood([ask(*pair) for pair in pairs[order]])
        assert [a for a, _ in answers] == pytest.approx(expected[order], abs=1e-4)
    # What the first would be at the place of the longer one's first token.
    (prompt, response), (longer_prompt, _) = encoded
    wrong = sum_by_hand(tiny_model, longer_prompt + response, 1)
    assert abs(wrong - expected[0]) > 0.01


def test_a_token_over_the_join(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """Of "hello" split after "hel", `hf` scores "helo"."""
    prompt, response = hf_pair(tiny_model, "hel", "lo")
    assert tiny_model.tokenizer.decode(prompt + response) == "helo"
    found, _ = InstructJaxLM(tiny_model).loglikelihood([ask("hel", "lo")])[0]
    ids = encode(tiny_model, "hel") + encode(tiny_model, "lo")
    assert tiny_model.tokenizer.decode(ids) == "hello"
    expected = sum_by_hand(tiny_model, ids, len(encode(tiny_model, "lo")))
    assert found == pytest.approx(expected, abs=1e-4)
    wrong = sum_by_hand(tiny_model, prompt + response, len(response))
    assert abs(found - wrong) > 0.1


def test_the_newline_of_a_template_is_not_scored(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """After "<|im_start|>assistant\\n", `hf` scores the newline as the first token of y."""
    lm = InstructJaxLM(tiny_model)
    context = lm.apply_chat_template([{"role": "user", "content": "Is the sea wet?"}])
    prompt, response = hf_pair(tiny_model, context, "yes")
    assert tiny_model.tokenizer.decode(response) == "\nyes"
    ids, own = encode(tiny_model, context), encode(tiny_model, "yes")
    assert ids + own == prompt + response
    found, _ = lm.loglikelihood([ask(context, "yes")])[0]
    assert found == pytest.approx(sum_by_hand(tiny_model, ids + own, len(own)), abs=1e-4)
    newline = sum_by_hand(tiny_model, ids, 1)
    wrong = sum_by_hand(tiny_model, prompt + response, len(response))
    assert wrong == pytest.approx(found + newline, abs=1e-4)
    assert newline < -0.1
