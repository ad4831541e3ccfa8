"""The harness' own model `hf` on the same tiny weights: equal where it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructjax.integrations.lm_eval import InstructJaxLM

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"
FAITHFUL = [
    ("Is the sea wet?", " yes"),
    ("Is the sea wet?", " of course not"),
    ("more of the same", " and more"),
    ("", "and so"),
    ("7 " * 60 + "7", " 8"),
]


@pytest.fixture(scope="module")
def hf() -> Any:
    for name in ("torch", "accelerate"):
        pytest.importorskip(name)
    from lm_eval.models import huggingface

    model: Any = huggingface.HFLM
    return model(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=1)


def test_law_1_equal_where_it_is_right(hf: Any, tiny_model: Any, ask: Callable[..., Any]) -> None:
    requests = [ask(*pair) for pair in FAITHFUL]
    ours = InstructJaxLM(tiny_model).loglikelihood(requests)
    theirs = hf.loglikelihood(requests, disable_tqdm=True)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    # Of 256 tokens at once, the model's own limit and another: one window, and several.
    text = [ask("they said so. " * 12), ask("they said so. " * 90)]
    model = InstructJaxLM(tiny_model, rolling_bos="first")
    assert model.max_length == hf.max_length == 256
    assert model.loglikelihood_rolling(text) == pytest.approx(
        hf.loglikelihood_rolling(text, disable_tqdm=True), abs=2e-3
    )


def test_where_it_is_not(hf: Any, tiny_model: Any, ask: Callable[..., Any]) -> None:
    """If one of these becomes equal, the harness was repaired, and its mention can go."""
    model = InstructJaxLM(tiny_model)
    context = model.apply_chat_template([{"role": "user", "content": "Is it?"}])
    pairs = [("hel", "lo"), (context, "yes"), ("more of", " the"), ("more", " of the")]
    requests = [ask(*pair) for pair in pairs]
    ours = [a for a, _ in model.loglikelihood(requests)]
    theirs = [a for a, _ in hf.loglikelihood(requests, disable_tqdm=True)]
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    assert min(gaps[:3]) > 1e-2 and gaps[3] < 1e-3
