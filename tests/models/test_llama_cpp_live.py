"""Law 1 live: llama.cpp runs the GGUF files of its converter, and we give the same log-probs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from instructjax.batching.packing import pack
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.params import load_params
from instructjax.models.model import abstract_decoder, fill
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs

pytestmark = [pytest.mark.llama_cpp, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).parents[1] / "fixtures" / "gguf"
# llama.cpp takes OLMoE without grouped heads only, which the checkpoint has.
NAMES = sorted({path.stem for path in FOLDER.glob("*.gguf")} - {"olmoe"})
LENGTH = 60
# Its GELU is a table of float16.
GELU = ("gemma", "gpt-neox", "gpt2")


def as_llama_cpp_has_it(name, config):
    """The configuration, but for what llama.cpp computes otherwise than transformers."""
    if name == "phi3-window":  # it has switched the windows of Phi-3 off
        return dataclasses.replace(config, layers=())
    if name == "phi3-longrope-partial":
        # The longer factors are for all requests if the context made room for is long; its least
        # is 256, beyond the 128 of this checkpoint.
        rope = dataclasses.replace(config.rope, divisors=config.rope.long_divisors)
        return dataclasses.replace(config, rope=rope)
    return config


def by_llama_cpp(path, ids):
    """log p [n - 1] of every token after the first; weights and cache in float32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    llm = llama_cpp.Llama(
        str(path), n_ctx=128, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False
    )
    llm.reset()
    llm.eval(list(ids))
    logits = np.asarray(llm.scores[: len(ids) - 1], np.float64)
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return np.take_along_axis(logs, np.asarray(ids)[1:, None], axis=1)[:, 0]


def by_us(path, ids):
    weights = GgufWeights(path)
    params = load_params(weights.family, weights.config, weights, np.float32)
    config = as_llama_cpp_has_it(path.stem, weights.config)
    graphdef, abstract = abstract_decoder(config, "float32")
    request = Request(ids=np.array(ids, np.int32), spans=((1, len(ids)),), num_bytes=0)
    (row,) = pack([request])
    run = jax.jit(lambda params: token_log_probs(graphdef, params, row.batch))
    return np.asarray(run(fill(abstract, params)))[0, : len(ids) - 1]


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_llama_cpp(name):
    ids = np.random.default_rng(0).integers(3, 80, LENGTH)
    path = FOLDER / f"{name}.gguf"
    theirs, ours = by_llama_cpp(path, ids), by_us(path, ids)
    apart = np.abs(theirs - ours)
    print(f"{name}: largest {apart.max():.2e}, mean {apart.mean():.2e} nats")
    assert apart.max() < (5e-3 if name.startswith(GELU) else 3e-5)
