"""Cases in which the harness' own model `hf` is off, and what is right, by numpy loops.

`hf_pair` does to strings what its models for PyTorch do (`TemplateLM._encode_pair`), so that each
test also shows that there is a difference to get wrong; test_hf_live.py shows it on `hf` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows

from instructjax.errors import UsageError
from instructjax.integrations.lm_eval import InstructJaxLM

pytestmark = pytest.mark.filterwarnings("ignore")


def hf_pair(model: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    class Encoder:
        backend = "causal"

        def tok_encode(self, text: str, **_: Any) -> list[int]:
            return encode(model, text)

    pair: Any = TemplateLM._encode_pair
    return pair(Encoder(), context, continuation)


def encode(model: Any, text: str) -> list[int]:
    return model.tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_of_several_processes_one_asks(
    tiny_model: Any, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf` reports rank 0 and world size 1 in each of them, unless accelerate started it."""
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with pytest.raises(UsageError, match="runs in process 0, and this is another"):
        InstructJaxLM(tiny_model).loglikelihood([ask("a", "b")])


def test_one_key_for_two_splits(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """A number belongs to one split of the ids.

    "more| of| the" split after "more of" is log p(the | more, of), one term; split after "more" it
    is log p(of | more) + log p(the | more, of), two. `hf` computes what has the same context and y
    but for y's last token once: here more, of for both. It keeps the rows of the longer y, [what
    follows more, what follows more of], and reads the one token of the shorter y from the first of
    them: log p(the | more).
    """
    pairs = [("more of", " the"), ("more", " of the")]
    (prompt, response), (longer_prompt, longer) = (hf_pair(tiny_model, *pair) for pair in pairs)
    assert [len(response), len(longer)] == [1, 2]
    assert prompt + response[:-1] == longer_prompt + longer[:-1]
    two = sum_by_hand(tiny_model, longer_prompt + longer, 2)
    one = sum_by_hand(tiny_model, prompt + response, 1)
    first = sum_by_hand(tiny_model, longer_prompt + longer[:1], 1)
    assert two == pytest.approx(first + one, abs=1e-9)
    expected = [one, two]
    for order in (slice(None), slice(None, None, -1)):
        answers = InstructJaxLM(tiny_model).loglikelihood([ask(*pair) for pair in pairs[order]])
        assert [a for a, _ in answers] == pytest.approx(expected[order], abs=1e-4)
    wrong = sum_by_hand(tiny_model, longer_prompt + response, 1)
    assert abs(wrong - one) > 0.01


def test_a_token_over_the_join(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """The string that is scored is context + continuation.

    "hello" is he|ll|o, "hel" alone is he|l. `hf` drops as many tokens from the first as the second
    has, and of he|ll|o only o is left: it scores he|l|o, which is "helo". Pr("lo" after "hel") with
    the context as it is read is log p(l | he, l) + log p(o | he, l, l), or log p(lo | he, l) where
    "lo" is one token.
    """
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
    """No byte of the template is scored as part of y.

    The prompt c ends in "<|im_start|>assistant\\n". `hf` moves white space at its end into y and
    gives log Pr("\\nyes" | c without it) = log p("\\n" | c without it) + log Pr("yes" | c). The
    second term is what was asked for.
    """
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


def test_every_window_of_a_text_begins_with_bos(
    tiny_model: Any, ask: Callable[..., Any], sum_by_hand: Callable[..., float]
) -> None:
    """A text that says the same twice gets the same twice.

    Two equal halves w of 8 tokens in windows of 8 positions: each window shows BOS and the 7 first
    tokens of its half, so the sum is 2 log Pr(w | BOS). In `hf` the second window shows the last
    token of the first half in place of BOS.
    """
    half = encode(tiny_model, "7 the sea and")
    text = tiny_model.tokenizer.decode(half * 2)
    assert encode(tiny_model, text) == half * 2
    width, bos = len(half), tiny_model.tokenizer.bos_id
    once = sum_by_hand(tiny_model, [bos, *half], width)
    (found,) = InstructJaxLM(tiny_model, max_length=width).loglikelihood_rolling([ask(text)])
    assert found == pytest.approx(2 * once, abs=1e-4)
    (_, (seen, predicted)) = get_rolling_token_windows(half * 2, bos, width, 1)
    assert (seen, predicted) == ([half[-1], *half[:-1]], half)
    wrong = once + sum_by_hand(tiny_model, [*seen, half[-1]], width)
    assert abs(found - wrong) > 0.1
