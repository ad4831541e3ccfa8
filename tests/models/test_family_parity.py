"""Law 1 for every family: log-probs and gradients of tiny checkpoints are those of PyTorch."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from instructjax.batching.packing import pack
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import check_tensors, load_params
from instructjax.models.checkpoints.safetensors import SafetensorsFolder
from instructjax.models.config import RopeConfig
from instructjax.models.families import FAMILIES
from instructjax.models.model import abstract_decoder, fill
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/expected.json"))
KINDS = {
    name: json.loads((FOLDER / name / "config.json").read_text())["model_type"] for name in NAMES
}
# By default, those with the most parts among them; every other one among the slow tests.
BY_DEFAULT = {"cohere2", "gpt-oss", "gpt2", "qwen2-tied"}
QUICK_AND_SLOW = [
    name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in NAMES
]
# LLVM's optimizations take two thirds of these tests' time; `test_torch_live.py` has them.
QUICKLY = {"xla_backend_optimization_level": "0"}


def load(folder):
    """(family, configuration, tree of parameters) of a folder without a tokenizer."""
    family, config, weights = open_folder(folder)
    return family, config, load_params(family, config, weights, np.float32)


def largest_differences(name):
    """Of log-probs, in nats, and of gradients, relative to the largest of each tensor."""
    family, config, params = load(FOLDER / name)
    graphdef, abstract = abstract_decoder(config, "float32")
    state = fill(abstract, params)
    sequences = json.loads((FOLDER / name / "expected.json").read_text())["sequences"]
    requests = [
        Request(ids=np.array(s["ids"], np.int32), spans=((1, len(s["ids"])),), num_bytes=0)
        for s in sequences
    ]
    count = sum(r.num_tokens for r in requests)
    (row,) = pack(requests)  # one row, so that they stand side by side
    assert len(row.members) == len(requests)

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(state):
        def mean(state):
            logs = token_log_probs(graphdef, state, row.batch)
            return logs.sum() / count, logs

        return jax.grad(mean, has_aux=True)(state)

    grads, logs = run(state)
    apart = [
        np.abs(np.asarray(logs[0])[entries] - sequences[index]["log_probs"]).max()
        for index, entries in row.members
    ]
    # A gradient is laid out as its parameter is, so PyTorch's are read as a checkpoint.
    stored = SafetensorsFolder(FOLDER / name / "gradients", family.renames)
    wanted = load_params(family, config, stored, np.float32)
    found = nnx.to_pure_dict(grads)
    assert jax.tree.structure(wanted) == jax.tree.structure(found)

    def relative(path, ours, theirs):
        size = np.abs(theirs).max()
        if "'correction'" in jax.tree_util.keystr(path):
            size = 1  # it is not trained: 0 on both sides
        if jax.tree_util.keystr(path) == "['layers']['attention']['k']['bias']" and size < 1e-6:
            size = 1  # it moves all keys alike, which softmax does not see: 0 without rotation
        assert size > 0
        return np.abs(ours - theirs).max() / size

    slopes = jax.tree.map_with_path(relative, found, wanted)
    return max(apart), max(jax.tree.leaves(slopes)), slopes


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_law_1_log_probs_and_gradients_are_those_of_pytorch(name, record_property):
    apart, steepest, slopes = largest_differences(name)
    record_property("log_prob_difference", float(apart))
    record_property("gradient_difference", float(steepest))
    assert apart <= 1e-4
    assert steepest <= 1e-4, slopes


def test_every_family_has_a_fixture():
    assert set(KINDS.values()) == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_and_no_tensor_too_many(name):
    family, config, params = load(FOLDER / name)
    assert config.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
    check_tensors(family, config, SafetensorsFolder(FOLDER / name, family.renames))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen2-window-yarn", {"layers": ()}),
        ("smollm3", {"layers": ()}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"logit_softcap": None}),
        ("granite", {"residual_multiplier": 1.0}),
        ("gpt-neox", {"parallel": False}),
        ("gpt-neox", {"activation": "gelu_tanh"}),
        ("stablelm", {"rotary_dim": None}),
        ("gpt-oss", {"layers": ()}),
        ("gpt-oss", {"swiglu_limit": 7.0}),
        ("deepseek-v3", {"router_groups": 1}),
        ("deepseek-v3", {"attention_scale": None}),
        ("llama-past-dynamic", {"rope": RopeConfig()}),
        ("phi3-past-longrope", {"max_positions": 32, "rope": RopeConfig()}),
    ],
)
def test_the_fixtures_would_catch_a_part_left_out(name, changes):
    _, config, params = load(FOLDER / name)
    config = dataclasses.replace(config, **changes)
    graphdef, abstract = abstract_decoder(config, "float32")
    sequences = json.loads((FOLDER / name / "expected.json").read_text())["sequences"]
    ids = sequences[-1]["ids"]
    request = Request(ids=np.array(ids, np.int32), spans=((1, len(ids)),), num_bytes=0)
    (row,) = pack([request])
    run = jax.jit(
        lambda params: token_log_probs(graphdef, params, row.batch), compiler_options=QUICKLY
    )
    found = run(fill(abstract, params))[0, : len(ids) - 1]
    assert np.abs(found - np.array(sequences[-1]["log_probs"])).max() > 1e-3


def test_fixtures_stay_small():
    folder = FOLDER.parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 8_000_000
