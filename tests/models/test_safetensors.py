"""Hugging Face folders: every parameter in its place, and every kind of damage named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from instructjax.errors import ModelError
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors import SafetensorsFolder


def load(folder: Path, dtype: str = "float32"):
    return load_params(*open_folder(folder), np.dtype(dtype))


def rewrite(folder: Path, change) -> None:
    """Load the tensors, let `change` edit the dict, and save them again."""
    file = folder / "model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_parameter_is_in_its_place(tiny, assert_params, tmp_path, tied, biased, shards):
    model = tiny(tied=tied, biased=biased)
    params = load(model.write_hf(tmp_path, shards=shards, tokenizer=False))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert_params(params, model.expected())


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_are_converted(tiny, assert_params, tmp_path, stored, dtype):
    model = tiny()
    stored_type = ml_dtypes.bfloat16 if stored == "bfloat16" else np.dtype(stored)
    params = load(model.write_hf(tmp_path, dtype=stored_type, tokenizer=False), dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    expected = {k: v.astype(stored_type).astype(np.float32) for k, v in model.expected().items()}
    assert_params(params, expected, dtype)


def test_a_tensor_read_in_many_blocks_is_the_same(tiny, assert_params, tmp_path, monkeypatch):
    model = tiny()
    monkeypatch.setattr("instructjax.models.checkpoints.params._BLOCK_ELEMENTS", 100)
    assert_params(load(model.write_hf(tmp_path, tokenizer=False)), model.expected())


def test_the_parameters_outlive_and_ignore_what_happens_to_the_file(tiny, assert_params, tmp_path):
    model = tiny()
    folder = model.write_hf(tmp_path, tokenizer=False)
    params = load(folder)
    (folder / "model.safetensors").write_bytes(b"gone")
    assert_params(params, model.expected())


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(tiny, assert_params, tmp_path):
    model = tiny()
    folder = model.write_hf(tmp_path, tokenizer=False)
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(3)}
    rewrite(folder, lambda t: t.update({n: np.ones(4, np.float32) for n in frequencies}))
    assert_params(load(folder), model.expected())


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tiny, assert_params, tmp_path):
    model = tiny(tied=True)
    folder = model.write_hf(tmp_path, tokenizer=False)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_params(load(folder), model.expected())

    def differ(tensors):
        tensors["lm_head.weight"][127, 31] += 1

    rewrite(folder, differ)
    with pytest.raises(ModelError, match="lm_head.weight differs from the embedding"):
        load(folder)


FAMILIES = Path(__file__).parents[1] / "fixtures" / "families"
FOLDER_OF = {
    json.loads(file.read_text())["model_type"]: file.parent
    for file in sorted(FAMILIES.glob("*/config.json"))
    if "quantization_config" not in file.read_text()
}


@pytest.mark.parametrize("kind", FOLDER_OF)
def test_names_of_a_model_that_was_saved_without_its_head(kind, tmp_path):
    """Those lack the name of the model within, as the published GPT-2's do."""
    tensors = load_file(FOLDER_OF[kind] / "model.safetensors")
    outer = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}.get(kind, "model.")
    bare = {name.removeprefix(outer): value for name, value in tensors.items()}
    assert len(bare) == len(tensors) and bare.keys() != tensors.keys()
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((FOLDER_OF[kind] / "config.json").read_text())
    wanted, found = load(FOLDER_OF[kind]), load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, wanted, found))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"missing tensors: {Q}"),
        (lambda t: t.pop("lm_head.weight"), "missing tensors: lm_head.weight"),
        (lambda t: t.update(extra=t[Q].copy()), "surplus tensor extra"),
        (
            lambda t: t.update({"model.layers.3.mlp.up_proj.weight": t[Q].copy()}),
            r"surplus tensor model.layers.3.mlp.up_proj.weight",
        ),
        (lambda t: t.update({Q: t[Q][:-1].copy()}), r"q_proj.weight has shape \[31, 32\]"),
        (lambda t: t.update({Q: t[Q].reshape(-1)}), r"shape \[1024\], the configuration says"),
        (lambda t: t.update({Q: t[Q].astype(np.float64) * 1e300}), f"{Q} holds NaN or infinity"),
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), f"{Q} is stored as I8"),
        (lambda t: t[Q].__setitem__((3, 5), np.nan), f"{Q} holds NaN"),
        (lambda t: t[Q].__setitem__((31, 31), np.inf), f"{Q} holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tiny, tmp_path, change, message):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert str(tmp_path) in str(caught.value)


def test_nan_in_bfloat16_is_found(tiny, tmp_path):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    rewrite(folder, lambda t: t[Q].__setitem__((0, 0), np.nan))
    with pytest.raises(ModelError, match=f"{Q} holds NaN"):
        load(folder, "bfloat16")


@pytest.mark.parametrize("size", [0, 7, 50, 5000, -1])
def test_truncated_files(tiny, tmp_path, size):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match="truncated, damaged or not safetensors"):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}" + b"junk" * 8, b"\x80\x04pickle", b"<html>not found"],
)
def test_files_of_another_kind(tiny, tmp_path, content):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="model.safetensors"):
        load(folder)


OUTSIDE = "which is no safetensors file of its folder"


def edit_index(folder: Path, change) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["weight_map"].update({Q: "../secret.safetensors"}), OUTSIDE),
        (lambda i: i["weight_map"].update({Q: "/etc/x.safetensors"}), OUTSIDE),
        (lambda i: i["weight_map"].update({Q: "sub\\x.safetensors"}), OUTSIDE),
        (lambda i: i["weight_map"].update({Q: "pytorch_model.bin"}), OUTSIDE),
        (lambda i: i["weight_map"].update({Q: 7}), OUTSIDE),
        (lambda i: i["weight_map"].update({Q: "gone.safetensors"}), "missing; download or copy"),
        (lambda i: i["weight_map"].update(other="model-00001-of-00002.safetensors"), "other"),
        (lambda i: i.pop("weight_map"), "weight_map"),
    ],
)
def test_indexes_that_do_not_fit(tiny, tmp_path, change, message):
    folder = tiny().write_hf(tmp_path, shards=2, tokenizer=False)
    edit_index(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_a_tensor_in_two_shards(tiny, tmp_path):
    folder = tiny().write_hf(tmp_path, shards=2, tokenizer=False)
    shards = sorted(folder.glob("*.safetensors"))
    first, second = load_file(shards[0]), load_file(shards[1])
    name = next(iter(first))
    save_file({**second, name: first[name]}, shards[1])
    with pytest.raises(ModelError, match="is also in model-00001"):
        load(folder)


def test_links_to_files_elsewhere_are_followed_as_the_hub_cache_makes_them(
    tiny, assert_params, tmp_path
):
    model = tiny()
    blobs = model.write_hf(tmp_path / "blobs", tokenizer=False)
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(blobs / name)
    assert_params(load(tmp_path / "snapshot"), model.expected())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_and_never_opened(tiny, tmp_path, name):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)  # opening it would wait for ever
    with pytest.raises(ModelError, match=f"pickled .{name}.*; convert them to safetensors"):
        load(folder)


def test_adapters_and_empty_folders_are_refused(tiny, tmp_path):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match="a model and an adapter"):
        load(folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="adapter"):
        load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="neither model.safetensors nor"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_broken_config(tiny, tmp_path, text):
    folder = tiny().write_hf(tmp_path, tokenizer=False)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="config.json"):
        load(folder)


def test_a_config_that_claims_a_billion_layers_allocates_nothing(tiny, tmp_path):
    model = tiny()
    for claimed, message in ((10**9, "is more than 10,000"), (9_999, r"missing .*layers\.3\.")):
        model.config["num_hidden_layers"] = claimed
        with pytest.raises(ModelError, match=message):
            load(model.write_hf(tmp_path / str(claimed), tokenizer=False))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, "F32"), (np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")]
)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_type_of_the_weights_is_told(tiny, tmp_path, dtype, kind, shards):
    folder = tiny().write_hf(tmp_path / "m", dtype=dtype, shards=shards)
    other = np.float16 if kind == "F32" else np.float32
    if shards == 1:
        norm = {"model.norm.weight": np.ones(tiny().config["hidden_size"], other)}
        rewrite(folder, lambda tensors: tensors.update(norm))
    assert SafetensorsFolder(folder).kind == kind
