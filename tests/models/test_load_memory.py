"""Loading holds one copy of the weights: measured in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

import instructjax.errors
from instructjax.models import load_model
from instructjax.models.checkpoints import onto_devices, params
from instructjax.models.checkpoints.hf_tokenizer import tokenizer_from_folder
from instructjax.models.checkpoints.safetensors import read_json
from instructjax.sharding import make_mesh

FIXTURES = Path(__file__).parents[1] / "fixtures"

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
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import load_params

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
    family, config, source = open_folder(path)
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


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("fsdp=2,expert=2", jax.devices()[:4])


def wait_for(happens: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.01)


def test_tensors_do_not_add_up_on_the_host(mesh):
    alive = []

    def pieces():
        for at in np.ndindex(3, 4):
            # JAX lets go of them a little later, on its devices' threads; what counts is that
            # they do not add up.
            wait_for(lambda: sum(piece() is not None for piece in alive) <= 1)
            piece = np.full((8, 2), 10 * at[0] + at[1], np.float32)
            alive.append(weakref.ref(piece))
            yield at, piece
            del piece

    sharding = NamedSharding(mesh, PartitionSpec(None, "expert", "fsdp"))
    whole = onto_devices.assemble((3, 4, 8, 2), np.dtype("float32"), sharding, pieces())
    assert whole.sharding == sharding and len(alive) == 12
    wanted = 10 * np.arange(3)[:, None] + np.arange(4)
    np.testing.assert_array_equal(whole, np.broadcast_to(wanted[..., None, None], whole.shape))


def test_writing_a_tensor_into_its_place_sends_and_copies_nothing(mesh):
    whole = NamedSharding(mesh, PartitionSpec(None, "expert", "fsdp"))
    part = NamedSharding(mesh, PartitionSpec("fsdp"))
    write = jax.jit(onto_devices._write, donate_argnums=0, out_shardings=whole)
    compiled = write.lower(
        jax.ShapeDtypeStruct((3, 4, 8, 2), np.float32, sharding=whole),
        jax.ShapeDtypeStruct((8, 2), np.float32, sharding=part),
        jax.ShapeDtypeStruct((2,), np.int32),
    ).compile()
    assert not re.search("all-|collective", compiled.as_text() or "all-")
    memory: Any = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == memory.output_size_in_bytes > memory.temp_size_in_bytes


@pytest.mark.parametrize("name", ["llama-sharded-bf16", "families/mixtral-window"])
def test_what_is_put_onto_a_mesh_tensor_by_tensor_is_the_same(name, mesh, tmp_path):
    for file in [*(FIXTURES / "llama-tied").glob("token*"), *(FIXTURES / name).glob("*")]:
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    one, split = load_model(tmp_path), load_model(tmp_path, mesh=mesh)
    leaves = zip(jax.tree.leaves(one.params), jax.tree.leaves(split.params), strict=True)
    for leaf, other in leaves:
        assert len(other.sharding.device_set) == 4
        np.testing.assert_array_equal(leaf, other)


def test_an_accelerator_is_given_a_tensor_at_a_time_too(tiny_model, monkeypatch):
    taken = []

    def assemble(shape, dtype, sharding, pieces):
        taken.append(shape)
        return onto_devices.assemble(shape, dtype, sharding, pieces)

    monkeypatch.setattr(params, "assemble", assemble)
    monkeypatch.setattr(params, "_takes_memory_over", lambda device: False)
    again = load_model(FIXTURES / "llama-tied")
    assert len(taken) == len(jax.tree.leaves(again.params))
    assert jax.tree.all(jax.tree.map(np.array_equal, tiny_model.params, again.params))


def test_a_tokenizer_needs_no_code_of_models(monkeypatch):
    """Transformers' configuration classes import it, and PyTorch's: seconds, and 60 MB."""
    from transformers import AutoConfig

    def refuse(*args, **kwargs):
        raise AssertionError("the configuration was made")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    folder = FIXTURES / "llama-tied"
    assert tokenizer_from_folder(folder, read_json(folder / "config.json"), name="tiny").vocab_size


def test_a_mesh_that_splits_nothing_of_the_hidden_state_is_warned_of():
    folder = Path(__file__).parents[1] / "fixtures" / "llama-tied"
    mesh = make_mesh("fsdp=3", jax.devices()[:3])
    with pytest.warns(UserWarning, match="hidden size of 32 does not divide over fsdp=3"):
        split = load_model(folder, mesh=mesh)
    one = load_model(folder)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_array_equal(a, b)
