"""Greedy ids are those of transformers `generate` on PyTorch, for models of many families."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.models.model import load_model
from instructjax.sampling import PromptToSample, Sampler, SamplingRules

pytestmark = [
    pytest.mark.torch,
    # torch and transformers may deprecate what they like
    pytest.mark.filterwarnings("ignore"),
]

TESTS = Path(__file__).parents[1]
TIE = 1e-4
# Windows, softcaps, several kinds of layers, learned positions, parallel blocks, experts.
KINDS = (
    "mistral-window",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt-neox",
    "cohere2",
    "mixtral-window",
    "qwen3-moe",
    "olmo3",
    "phi3-longrope-partial",
)


@pytest.fixture(scope="module")
def maker() -> Any:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("maker", TESTS / "make_family_fixtures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_ids_are_those_of_generate(name: str, penalty: float, maker: Any, tmp_path: Path):
    import torch

    kind, changes = maker.ALL[name]
    theirs = maker.make_model(kind, changes, 17)
    theirs.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TESTS / "fixtures" / "llama-tied" / file, tmp_path)
    ours = load_model(tmp_path)
    rng = np.random.default_rng(2)
    prompts = [
        PromptToSample(
            ids=rng.integers(0, maker.VOCAB, size).astype(np.int32),
            name=f"{size}",
            max_new_tokens=24,
        )
        for size in (1, 3, 20, 47)
    ]
    rules = SamplingRules(temperature=0, repetition_penalty=penalty)
    made = {one.prompt: one for one in Sampler(ours, rules=rules, stop_ids=()).sample(prompts)}
    compared = 0
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor(prompt.ids[None].astype(np.int64)),
                attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
        expected = out.sequences[0, len(prompt.ids) :].tolist()
        for place, (mine, other) in enumerate(zip(made[i].ids.tolist(), expected, strict=True)):
            if mine != other:  # two as likely: either is right, and the rest is another text
                best = out.scores[place][0].topk(2).values
                assert best[0] - best[1] <= TIE, (name, i, place)
                break
            compared += 1
    assert compared >= 24  # ties are rare
