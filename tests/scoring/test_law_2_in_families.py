"""Law 2 in families with parts that Llama has not: caps, experts, other norms, latent attention."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.models.model import load_model
from instructjax.prompts import Request
from instructjax.scoring import Work, score_requests

FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
# Caps and experts are computed in another order in rows of another length.
ROUNDED = ("gemma2", "olmoe", "gpt-oss", "mixtral-window", "deepseek-v3")
EXACT = ("gemma3", "gpt2", "gpt-neox", "olmo2", "cohere2", "stablelm", "qwen3-tied-wide-heads")


def make_requests(vocab_size: int) -> list[Request]:
    rng = np.random.default_rng(0)
    prefix = rng.integers(3, vocab_size, 20)
    ids = [np.concatenate([prefix, rng.integers(3, vocab_size, 20)]) for _ in range(24)]
    return [Request(ids=one.astype(np.int32), spans=((20, 40),), num_bytes=1) for one in ids]


BY_DEFAULT = {"gpt2", "gpt-oss", "deepseek-v3"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow)
        for name in (*EXACT, *ROUNDED)
    ],
)
def test_law_2_a_request_alone_and_among_others(name: str, tmp_path: Path) -> None:
    # Ids are given, so that any tokenizer does.
    shutil.copytree(FAMILIES / name, tmp_path, dirs_exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FAMILIES.parent / "llama-tied" / file, tmp_path)
    model = load_model(tmp_path, dtype="float32")
    requests = make_requests(model.config.vocab_size)
    work: Any = [Work(), Work()]
    together = list(score_requests(model, requests, work=work[0]))
    for at in (0, 9, 23):
        (alone,) = score_requests(model, [requests[at]], work=work[1])
        gap = np.abs(alone.token_log_probs - together[at].token_log_probs).max()
        assert gap <= (1e-5 if name in ROUNDED else 0.0)
    # Shared, and in rows of other lengths, or nothing would be shown.
    assert work[0].useful < 0.6 * work[0].requested
    assert work[0].programs.isdisjoint(work[1].programs)
