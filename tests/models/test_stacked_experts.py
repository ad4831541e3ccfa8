"""Experts as transformers 5 has them, a stack of matrices a layer, load as those one by one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from instructjax.errors import ModelError
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import load_params

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
FILE = "model.safetensors"
NAMES = ("mixtral-window", "qwen3-moe", "olmoe-each-head", "deepseek-v3")
ONE = re.compile(r"(.*\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|down_proj|up_proj)\.weight")
PARTS = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down"}


def load(folder):
    return load_params(*open_folder(folder), np.float32)


def stack(tensors):
    """The tensors with experts as transformers 5 names them: gates' rows before those of ups."""
    found, rest = {}, {}
    for name, value in tensors.items():
        if match := ONE.fullmatch(name):
            before, expert, part = match.groups()
            part = PARTS.get(part, "down")
            found.setdefault(before, {}).setdefault(int(expert), {})[part] = value
        else:
            rest[name.replace("block_sparse_moe", "mlp")] = value
    for before, experts in found.items():
        name, each = before.replace("block_sparse_moe", "mlp"), sorted(experts)
        both = [np.concatenate([experts[i]["gate"], experts[i]["up"]]) for i in each]
        rest[f"{name}.gate_up_proj"] = np.stack(both)
        rest[f"{name}.down_proj"] = np.stack([experts[i]["down"] for i in each])
    return rest


def copied(name, folder, change):
    """A fixture with its tensors changed."""
    shutil.copytree(FOLDER / name, folder, dirs_exist_ok=True)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / FILE)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [50, 1 << 21])
def test_a_stack_is_each_experts_matrices(name, block, tmp_path, monkeypatch):
    monkeypatch.setattr("instructjax.models.checkpoints.params._BLOCK_ELEMENTS", block)
    wanted, found = load(FOLDER / name), load(copied(name, tmp_path, stack))
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    assert jax.tree.all(jax.tree.map(np.array_equal, wanted, found))


@pytest.mark.parametrize("kind", ["blocks", "whole"])
def test_a_stack_of_float8(kind, tmp_path):
    """[6, 24, 32] in blocks of 8 x 16, so that gates and ups have blocks of their own."""
    name, rng, scales = "qwen3-moe", np.random.default_rng(0), {}

    def quantize(tensors):
        tensors = stack(tensors)
        for key in [key for key in tensors if key.endswith("gate_up_proj")]:
            small = tensors[key].astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
            size = (small.shape[0], 3, 2) if kind == "blocks" else (1,)
            scales[key] = rng.uniform(0.5, 2, size).astype(np.float32)
            by_block = (
                np.kron(scales[key], np.ones((1, 8, 16))) if kind == "blocks" else scales[key]
            )
            wanted[key] = small.astype(np.float32) * by_block.astype(np.float32)
            tensors[key] = small.view(np.uint8)
            tensors[f"{key}_scale_inv"] = scales[key]
        return tensors

    wanted: dict[str, np.ndarray] = {}
    folder = copied(name, tmp_path, quantize)
    raw = (folder / FILE).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + size].replace(b'"U8"', b'"F8_E4M3"')
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 16]}
    (folder / "config.json").write_text(json.dumps(values))
    found = load(folder)["layers"]["mlp"]
    for layer in range(2):
        gate_up = wanted[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        np.testing.assert_array_equal(found["gate"][layer], gate_up[:, :12].swapaxes(1, 2))
        np.testing.assert_array_equal(found["up"][layer], gate_up[:, 12:].swapaxes(1, 2))


def test_stacks_that_do_not_fit_are_named(tmp_path):
    key = "model.layers.0.mlp.experts.gate_up_proj"

    def odd(tensors):
        tensors = stack(tensors)
        return {**tensors, key: tensors[key][:, :-1]}

    def flat(tensors):
        tensors = stack(tensors)
        return {**tensors, key: tensors[key][0]}

    def twice(tensors):
        return {**tensors, **stack(tensors)}

    for change, words in ((odd, "no stack of experts"), (flat, "no stack"), (twice, "also in the")):
        with pytest.raises(ModelError, match=words) as caught:
            load(copied("qwen3-moe", tmp_path, change))
        assert key in str(caught.value)

    def fewer(tensors):
        tensors = stack(tensors)
        return {**tensors, key: tensors[key][:-1]}

    with pytest.raises(ModelError, match=r"missing tensors: .*experts.5.gate_proj"):
        load(copied("qwen3-moe", tmp_path, fewer))


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_saves_in_its_own_naming(name, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(FOLDER / name), dtype=torch.float32)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any(key.endswith("experts.gate_up_proj") for key in load_file(tmp_path / FILE))
    (tmp_path / "config.json").write_text((FOLDER / name / "config.json").read_text())
    wanted, found = load(FOLDER / name), load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, wanted, found))
