"""Loading holds one copy of the weights: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import instructjax.errors

LAYERS, HIDDEN, INNER, VOCAB = 5, 512, 2048, 1024
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
}
# Hugging Face's part of the name, GGUF's, the shape
LAYER = [
    ("self_attn.q_proj", "attn_q", (512, 512)),
    ("self_attn.k_proj", "attn_k", (512, 512)),
    ("self_attn.v_proj", "attn_v", (512, 512)),
    ("self_attn.o_proj", "attn_output", (512, 512)),
    ("mlp.gate_proj", "ffn_gate", (2048, 512)),
    ("mlp.up_proj", "ffn_up", (2048, 512)),
    ("mlp.down_proj", "ffn_down", (512, 2048)),
    ("input_layernorm", "attn_norm", (512,)),
    ("post_attention_layernorm", "ffn_norm", (512,)),
]
TENSORS = [
    ("model.embed_tokens", "token_embd", (VOCAB, HIDDEN)),
    ("lm_head", "output", (VOCAB, HIDDEN)),
    ("model.norm", "output_norm", (HIDDEN,)),
] + [
    (f"model.layers.{i}.{hf}", f"blk.{i}.{gg}", shape)
    for i in range(LAYERS)
    for hf, gg, shape in LAYER
]

PEAK = """
import sys, jax, numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors import SafetensorsFolder, read_json
from instructjax.models.families import family_for_hf

def peak():  # of this program alone; ru_maxrss would count the parent's too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

path = Path(sys.argv[1])
jax.block_until_ready(jax.device_put(np.ones(8)))
before = peak()
if path.suffix == ".gguf":
    source = GgufWeights(path)
    family, config = source.family, source.config
else:
    values = read_json(path / "config.json")
    family = family_for_hf(values, path)
    config = family.config_from_hf(values, path)
    source = SafetensorsFolder(path)
params = load_params(family, config, source, np.float32)
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), peak() - before)
"""


def write_hf(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {f"{hf}.weight": np.ones(shape, np.float32) for hf, _, shape in TENSORS}
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_gguf(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    for _, name, shape in TENSORS:
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("write", [write_hf, pytest.param(write_gguf, marks=pytest.mark.slow)])
def test_peak_memory_is_near_one_copy(tmp_path, write):
    """Two copies at any time, or the file mapped beside the weights, would show as 2."""
    path = str(write(tmp_path))
    root = str(Path(instructjax.errors.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, root], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > 88e6
    assert 0.9 * size < grown < 1.5 * size
