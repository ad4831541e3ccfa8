"""Law 1 live: llama.cpp runs the GGUF files of its converter, and we give the same log-probs.

It rounds what it multiplies with a matrix of bfloat16 to bfloat16, so it is given the files with
the same weights in float32.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.params import load_params
from instructjax.models.model import abstract_decoder, fill

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


@pytest.fixture
def from_file(by_us):
    """Our log-probs of a file's model."""

    def read(path, ids):
        weights = GgufWeights(path)
        params = load_params(weights.family, weights.config, weights, np.float32)
        config = as_llama_cpp_has_it(path.stem, weights.config)
        return by_us(config, fill(abstract_decoder(config, "float32")[1], params), ids)

    return read


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_llama_cpp(name, tmp_path, edit_gguf, by_llama_cpp, from_file):
    ids = np.random.default_rng(0).integers(3, 80, LENGTH)
    path = FOLDER / f"{name}.gguf"
    theirs = by_llama_cpp(edit_gguf(path, tmp_path / path.name), ids)
    ours = from_file(path, ids)
    apart = np.abs(theirs - ours)
    print(f"{name}: largest {apart.max():.2e}, mean {apart.mean():.2e} nats")
    assert apart.max() < (5e-3 if name.startswith(GELU) else 3e-5)


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_the_others_are_not_loaded_by_llama_cpp(name, words, tmp_path, capfd, edit_gguf):
    """Their parameters are compared with the checkpoint's in `test_gguf_families.py`."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = edit_gguf(FOLDER / f"{name}.gguf", tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match="Failed to load model"):
        llama_cpp.Llama(str(path), verbose=True)
    assert words in capfd.readouterr().err


def test_latent_attention_without_a_rank_of_queries(tmp_path, by_llama_cpp, from_file):
    """As Moonlight has it; llama.cpp knows such files by their 27 layers."""
    import gguf

    heads, still, turned, rank, value_dim, hidden, wide, count = 2, 8, 4, 12, 6, 16, 8, 4
    writer = gguf.GGUFWriter(tmp_path / "lite.gguf", "deepseek2")
    writer.add_tokenizer_model("none")
    settings: Any = (
        (writer.add_vocab_size, 80),
        (writer.add_block_count, 27),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, hidden),
        (writer.add_feed_forward_length, 20),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, 1),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 50000.0),
        (writer.add_rope_dimension_count, turned),
        (writer.add_key_length, rank + turned),
        (writer.add_value_length, rank),
        (writer.add_key_length_mla, still + turned),
        (writer.add_value_length_mla, value_dim),
        (writer.add_kv_lora_rank, rank),
        (writer.add_leading_dense_block_count, 1),
        (writer.add_expert_count, count),
        (writer.add_expert_used_count, 2),
        (writer.add_expert_shared_count, 2),
        (writer.add_expert_feed_forward_length, wide),
        (writer.add_expert_weights_norm, True),
        (writer.add_expert_weights_scale, 2.446),
        (writer.add_expert_gating_func, gguf.ExpertGatingFuncType.SIGMOID),
    )
    for add, value in settings:
        add(value)
    rng = np.random.default_rng(0)

    def add_tensor(name, *shape):
        spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        # So many random layers would multiply every rounding.
        spread *= 0.3 if "attn_output" in name or "ffn_down" in name else 1
        values = spread * rng.standard_normal(shape, np.float32)
        writer.add_tensor(name, values + ("norm" in name))

    add_tensor("token_embd.weight", 80, hidden)
    add_tensor("output.weight", 80, hidden)
    add_tensor("output_norm.weight", hidden)
    for layer in range(27):
        at = f"blk.{layer}."
        add_tensor(f"{at}attn_norm.weight", hidden)
        add_tensor(f"{at}ffn_norm.weight", hidden)
        add_tensor(f"{at}attn_q.weight", heads * (still + turned), hidden)
        add_tensor(f"{at}attn_kv_a_mqa.weight", rank + turned, hidden)
        add_tensor(f"{at}attn_kv_a_norm.weight", rank)
        add_tensor(f"{at}attn_k_b.weight", heads, rank, still)
        add_tensor(f"{at}attn_v_b.weight", heads, value_dim, rank)
        add_tensor(f"{at}attn_output.weight", hidden, heads * value_dim)
        if layer:
            add_tensor(f"{at}ffn_gate_inp.weight", count, hidden)
            add_tensor(f"{at}exp_probs_b.bias", count)
        kinds = (("_exps", (count,), wide), ("_shexp", (), 2 * wide)) if layer else (("", (), 20),)
        for suffix, first, width in kinds:
            add_tensor(f"{at}ffn_gate{suffix}.weight", *first, width, hidden)
            add_tensor(f"{at}ffn_up{suffix}.weight", *first, width, hidden)
            add_tensor(f"{at}ffn_down{suffix}.weight", *first, hidden, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = rng.integers(3, 80, LENGTH)
    path = tmp_path / "lite.gguf"
    theirs, ours = by_llama_cpp(path, ids), from_file(path, ids)
    assert np.abs(theirs - theirs.mean()).max() > 1
    assert np.abs(theirs - ours).max() < 3e-5
