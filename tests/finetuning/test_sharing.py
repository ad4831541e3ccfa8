"""What sequences of a row begin with in common is computed once: the same loss and gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from instructjax.errors import UsageError
from instructjax.finetuning.batch import WeightedIds, lay_out, make_sft_batch
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.partition import split_params
from instructjax.finetuning.prepare import _read_alike, load_for_training, prepare
from instructjax.finetuning.step import make_loss_and_grads
from instructjax.models import load_model
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import make_mesh

FIXTURES = Path(__file__).parents[1] / "fixtures"
VOCAB = 61


def weigh(ids: list[int], *spans: tuple[int, int], prompt: float = 0.0) -> WeightedIds:
    weights = np.full(len(ids), prompt, np.float32)
    weights[0] = 0
    for turn, (start, stop) in enumerate(spans):
        weights[start:stop] = 1.0 + turn
    return WeightedIds(ids=np.array(ids, np.int32), weights=weights)


def make_rows(rng: np.random.Generator, prompt: float = 0.0) -> list[list[WeightedIds]]:
    """Two rows, each in depth-first order."""

    def draw(size: int) -> list[int]:
        return rng.integers(0, VOCAB, size).tolist()

    instruction, tail = draw(19), draw(2)
    tasks = []
    for size in (5, 1, 14):
        asked = instruction + draw(size)
        tasks += [(asked + draw(n), len(asked)) for n in (1, 6, 1)]
    tasks.append(tasks[0])  # the same again
    first = [weigh(ids, (start, len(ids)), prompt=prompt) for ids, start in tasks]
    chat = draw(9)
    longer = chat + draw(12)
    second = [
        weigh(chat, (4, 6), (7, 9), prompt=prompt),  # two turns, and one that goes on from them
        weigh(longer, (17, 19), prompt=prompt),  # does not score what the first does
        weigh(longer + tail, (4, 6), (20, 23), prompt=prompt),
        weigh(draw(6), (2, 6), prompt=prompt),  # nothing in common
        weigh(longer[:1] + draw(4), (1, 5), prompt=prompt),  # one token in common
    ]
    return [sorted(row, key=lambda x: x.ids[:-1].tolist()) for row in (first, second)]


def each_alone(rows: list[list[WeightedIds]]) -> list[list[WeightedIds]]:
    return [[sequence] for row in rows for sequence in row]


def assert_same(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))
    assert sum(np.abs(x).max() > 1e-2 for x in jax.tree.leaves(expected[2])) > 5


def read(name: str, folder: Path) -> Any:
    """A fixture of a family, with any tokenizer."""
    for file in [*(FIXTURES / "llama-tied").glob("token*"), *(FIXTURES / name).glob("*")]:
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return load_model(folder)


FAMILIES = "gpt-oss", "gemma2", "gemma3", "deepseek-v3", "mistral-window", "qwen3-moe", "gpt2"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_those_of_each_alone(name: str, tmp_path: Path) -> None:
    """Windows, sinks, caps, experts, latent keys and learned positions, over prefixes of a tree."""
    model = read(f"families/{name}", tmp_path)
    rows = make_rows(np.random.default_rng(0))
    compute = jax.jit(make_loss_and_grads(model.graphdef))
    params = split_params(model.params, ("*",))
    shared = make_sft_batch(rows, length=128, share=True, tile=16)
    alone = make_sft_batch(each_alone(rows), length=64, tile=16)
    used = (shared.batch.ends > 0).sum()
    distinct = {tuple(s.ids[:n]) for row in rows for s in row for n in range(1, len(s.ids))}
    assert used == len(distinct) + 1  # one token in common is not worth it
    assert used < 0.6 * (alone.batch.ends > 0).sum()
    assert_same(compute(*params, shared), compute(*params, alone))


@pytest.mark.parametrize("remat", ["none", pytest.param("dots", marks=pytest.mark.slow)])
def test_a_token_that_several_score_counts_for_each(random_model: Any, remat: str) -> None:
    model = random_model(seed=4)
    compute = jax.jit(make_loss_and_grads(model.graphdef, remat=remat))
    params = split_params(model.params, ("*",))
    for prompt in (0.0, 0.3):
        rows = make_rows(np.random.default_rng(1), prompt)
        shared = make_sft_batch(rows, length=128, share=True, tile=16)
        alone = make_sft_batch(each_alone(rows), length=64, tile=16)
        found, expected = compute(*params, shared), compute(*params, alone)
        assert float(found[1]) == pytest.approx(sum(s.weights.sum() for r in rows for s in r))
        assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["data=2", "fsdp=2,tensor=2", "context=2", "data=2,context=2"])
def test_law_3_of_shared_rows_on_a_mesh(random_model: Any, shape: str) -> None:
    model = random_model(seed=4)
    rows = make_rows(np.random.default_rng(2))
    batch = make_sft_batch(rows, length=128, share=True, tile=16)
    params = split_params(model.params, ("*",))
    expected = jax.jit(make_loss_and_grads(model.graphdef))(*params, batch)
    mesh = make_mesh(shape, jax.devices()[: 4 if "," in shape else 2])
    compute = jax.jit(make_loss_and_grads(model.graphdef, mesh=mesh))
    assert_same(compute(*params, batch), expected)


def test_entries_say_where_the_scores_of_each_are(random_model: Any) -> None:
    model = random_model(seed=4)
    rows = make_rows(np.random.default_rng(3))
    score = jax.jit(lambda params, batch: token_log_probs(model.graphdef, params, batch))
    made, entries = lay_out(rows, 128, 128, share=True, tile=16)
    alone, own = lay_out(each_alone(rows), 64, 64, share=False, tile=16)
    values, wanted = np.asarray(score(model.params, made.batch)), score(model.params, alone.batch)
    found = [values[i][scored] for i, row in enumerate(entries) for scored in row]
    expected = [np.asarray(line)[scored] for line, (scored,) in zip(wanted, own, strict=True)]
    assert len(found) == len(expected) == sum(map(len, rows))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_lengths_that_a_model_reads_differently_share_nothing(tmp_path: Path, tiny_model: Any):
    """What turns keys depends on how long a sequence is: the prefix of both is not the same."""
    model = read("families/phi3-past-longrope", tmp_path)
    original = model.config.rope.original_max_positions

    assert _read_alike(model, [np.array([3, original]), np.array([2])])
    assert _read_alike(model, [np.array([original + 1, original + 5])])
    assert not _read_alike(model, [np.array([3, original]), np.array([original + 1])])
    assert _read_alike(tiny_model, [np.array([3, 4000])])
    data = tmp_path / "rows.jsonl"
    texts = "a", "a " * original
    data.write_text("".join(json.dumps({"instruction": x, "output": "y"}) + "\n" for x in texts))
    config = FinetuneConfig(
        data=(data,),
        out=tmp_path / "run",
        model=str(tmp_path),
        layout="plain",
        row_length=8 * original,
        share_prefixes=True,
    )
    with pytest.raises(UsageError, match="leave out share_prefixes"):
        prepare(config, *load_for_training(config))
