"""Law 1 live: llama.cpp runs the GGUF files of its converter, and we give the same log-probs.

It rounds what it multiplies with a matrix of bfloat16 to bfloat16, so it is given the files with
the same weights in float32.
"""

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

pytestmark = [pytest.mark.slow, pytest.mark.llama_cpp, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).parents[1] / "fixtures" / "gguf"
# What its converter writes and llama.cpp then does not load, with its words.
REFUSED = {
    "gpt-neox-sequential": "tensor 'output.weight' not found",  # a tied head
    "gpt2-untied": "'blk.0.ffn_down.weight' has wrong shape",  # n_inner other than 4 x n_embd
    "olmoe": "'blk.0.attn_k_norm.weight' has wrong shape",  # grouped heads
    "qwen3-bias-yarn": "wrong number of tensors",  # biases of queries and keys
}
NAMES = sorted({path.stem for path in FOLDER.glob("*.gguf")} - set(REFUSED))
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
    if name == "deepseek-v3":  # it takes `mscale` to be `mscale_all_dim`, as in the published ones
        return dataclasses.replace(
            config, rope=dataclasses.replace(config.rope, attention_factor=1.0)
        )
    return config


def in_float32(path, folder):
    """A copy of a GGUF file with every tensor in float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / path.name, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / path.name


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
    quickly = {"xla_backend_optimization_level": "0"}  # the model is run once
    logs = jax.jit(
        lambda params: token_log_probs(graphdef, params, row.batch), compiler_options=quickly
    )
    return np.asarray(logs(fill(abstract, params)))[0, : len(ids) - 1]


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_llama_cpp(name, tmp_path):
    ids = np.random.default_rng(0).integers(3, 80, LENGTH)
    path = FOLDER / f"{name}.gguf"
    theirs, ours = by_llama_cpp(in_float32(path, tmp_path), ids), by_us(path, ids)
    apart = np.abs(theirs - ours)
    print(f"{name}: largest {apart.max():.2e}, mean {apart.mean():.2e} nats")
    assert apart.max() < (5e-3 if name.startswith(GELU) else 3e-5)


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_the_others_are_not_loaded_by_llama_cpp(name, words, tmp_path, capfd):
    """Their parameters are compared with the checkpoint's in `test_gguf_families.py`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = in_float32(FOLDER / f"{name}.gguf", tmp_path)
    with pytest.raises(ValueError, match="Failed to load model"):
        llama_cpp.Llama(str(path), verbose=True)
    assert words in capfd.readouterr().err
