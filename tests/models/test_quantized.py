"""MXFP4 and float8 weights: the numbers of the standards, and files whose parts do not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from instructjax.errors import ModelError
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.quantized import block_of, scale_blocks, unpack_mxfp4
from instructjax.models.checkpoints.safetensors import SafetensorsFolder
from instructjax.models.families import family_for_hf
from instructjax.models.families.quantization import Float8, read_quantization

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
FILE = Path("config.json")


def test_every_value_of_mxfp4_is_that_of_ml_dtypes():
    nibbles = np.arange(16, dtype=np.uint8)
    blocks = (nibbles | (nibbles[::-1] << 4)).reshape(1, 1, 16)
    values = np.stack([nibbles, nibbles[::-1]], -1).reshape(-1).view(ml_dtypes.float4_e2m1fn)
    for scale in (0, 1, 100, 127, 200, 254):
        power = np.array([scale], np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        with np.errstate(over="ignore"):  # six times the largest scale is beyond float32
            expected = (values.astype(np.float64) * power).astype(np.float32)
            found = unpack_mxfp4(blocks, np.full((1, 1), scale, np.uint8))
        assert np.array_equal(found[0], expected), scale
    assert np.isnan(unpack_mxfp4(blocks, np.full((1, 1), 255, np.uint8))).all()


def test_blocks_that_do_not_divide_a_matrix():
    """DeepSeek-V3's joint projection has 576 rows: four blocks of 128 and half a one."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((576, 130)).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.random((5, 2)).astype(np.float32)
    block = block_of(values.shape, scales.shape, (128, 128))
    assert block is not None and block == (128, 128)
    expected = values.astype(np.float32) * np.kron(scales, np.ones((128, 128)))[:576, :130]
    found = scale_blocks(values[200:400], scales, block, start=200)
    np.testing.assert_array_equal(found, expected[200:400].astype(np.float32))
    assert block_of(values.shape, scales.shape, None) is None  # nobody says where a block ends


def load(folder):
    values = json.loads((folder / "config.json").read_text())
    family = family_for_hf(values, FILE)
    config = family.config_from_hf(values, FILE)
    weights = SafetensorsFolder(folder, (), read_quantization(values, FILE))
    return load_params(family, config, weights, np.float32)


def save_float8(folder, tensors):
    """As `save_file`, which has no float8: those are written as bytes, and then called float8."""
    small = [name for name, value in tensors.items() if value.dtype == ml_dtypes.float8_e4m3fn]
    as_bytes = {n: v.view(np.uint8) if n in small else np.asarray(v) for n, v in tensors.items()}
    save_file(as_bytes, folder / "model.safetensors")
    retype(folder, small, "F8_E4M3")


def retype(folder, names, kind):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for name in names:
        header[name]["dtype"] = kind
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


PROJECTION = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("kind", ["whole", "rows", "flat rows", "none"])
def test_one_scale_for_a_matrix_one_for_each_row_and_none(tmp_path, kind):
    source = FOLDER / "qwen3-tied-wide-heads"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    small = tensors[PROJECTION].astype(ml_dtypes.float8_e4m3fn)
    tensors[PROJECTION] = small
    by_row = np.linspace(0.5, 2, len(small), dtype=np.float32)
    scales = {"whole": np.float32(0.3), "none": np.float32(1)}.get(kind, by_row[:, None])
    if kind != "none":
        tensors[f"{PROJECTION}_scale"] = by_row if kind == "flat rows" else np.asarray(scales)
        tensors["model.layers.0.self_attn.q_proj.input_scale"] = np.ones(1, np.float32)
    save_float8(tmp_path, tensors)
    found = load(tmp_path)["layers"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(found[0], (small.astype(np.float32) * scales).T)


@pytest.mark.parametrize(
    "more",
    [
        "self_attn.q_proj.input_scale_ub",  # fbgemm: the largest scale of activations
        "self_attn.q_proj.output_scale",
        "self_attn.k_scale",  # compressed-tensors: of keys and values that are kept
        "self_attn.v_scale",
    ],
)
def test_scales_of_what_is_not_quantized_here_are_passed_over(tmp_path, more):
    """They round activations or the cache of who serves the model; its weights are the same."""
    source = FOLDER / "qwen3-tied-wide-heads"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    small = tensors[PROJECTION].astype(ml_dtypes.float8_e4m3fn)
    tensors |= {PROJECTION: small, f"{PROJECTION}_scale": np.asarray(np.float32(0.5))}
    tensors[f"model.layers.0.{more}"] = np.full(1, 0.25, np.float32)
    save_float8(tmp_path, tensors)
    found = load(tmp_path)["layers"]["attention"]["q"]["kernel"]
    np.testing.assert_array_equal(found[0], small.astype(np.float32).T / 2)
    # without float8 nothing of the kind belongs there
    tensors = load_file(source / "model.safetensors")
    tensors[f"model.layers.0.{more}"] = np.full(1, 0.25, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"surplus tensor model.layers.0.{more}"):
        load(tmp_path)


def test_scales_that_do_not_fit_are_named(tmp_path):
    source = FOLDER / "qwen3-tied-wide-heads"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    tensors[PROJECTION] = tensors[PROJECTION].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{PROJECTION}_scale_inv"] = np.ones((5, 7), np.float32)
    save_float8(tmp_path, tensors)
    with pytest.raises(ModelError, match=r"q_proj.weight of shape .* scales of shape \[5, 7\]"):
        load(tmp_path)


def test_a_block_without_its_scales_is_named(tmp_path):
    source = FOLDER / "gpt-oss-mxfp4"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    name = "model.layers.0.mlp.experts.down_proj"
    scales = tensors.pop(f"{name}_scales")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="down_proj_blocks is stored as U8"):
        load(tmp_path)
    save_file({**tensors, f"{name}_scales": scales[:, :-1]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="down_proj_blocks .* do not fit together"):
        load(tmp_path)


@pytest.mark.parametrize("lost", ["one", "all"])
def test_float8_without_its_scales_is_named(tmp_path, lost):
    """The numbers alone are some other model, which would load and score nonsense."""
    shutil.copytree(FOLDER / "qwen3-fp8", tmp_path, dirs_exist_ok=True)
    with safe_open(tmp_path / "model.safetensors", "numpy") as opened:
        scales = sorted(k for k in opened.keys() if k.endswith("_scale_inv"))  # noqa: SIM118
    small = [name.removesuffix("_scale_inv") for name in scales]
    retype(tmp_path, small, "U8")  # which numpy has
    tensors = load_file(tmp_path / "model.safetensors")
    for name in scales[:1] if lost == "one" else scales:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    retype(tmp_path, small, "F8_E4M3")
    with pytest.raises(ModelError, match="is stored as F8_E4M3, and its scales") as caught:
        load(tmp_path)
    assert any(name in str(caught.value) for name in small[: 1 if lost == "one" else None])


def test_one_scale_that_is_lost_among_others_is_named_whatever_the_configuration(tmp_path):
    source = FOLDER / "qwen3-tied-wide-heads"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    other = PROJECTION.replace("q_proj", "k_proj")
    for name in (PROJECTION, other):
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{PROJECTION}_scale"] = np.ones((), np.float32)
    save_float8(tmp_path, tensors)
    with pytest.raises(ModelError, match=f"{re.escape(other)} .* are missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method"),
        ({"bits": 4}, "quant_method"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "format"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "expert_dtype"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size"),
        ("fp8", "quantization_config"),
    ],
)
def test_other_quantizations_are_refused_by_name(config, word):
    with pytest.raises(ModelError, match=word):
        read_quantization({"quantization_config": config}, FILE)


def test_the_block_of_a_configuration():
    def read(**config):
        return read_quantization({"quantization_config": config}, FILE)

    assert read(quant_method="fp8", weight_block_size=[64, 128]) == Float8(block=(64, 128))
    assert read(quant_method="fp8") == Float8(block=(128, 128))
    assert read(quant_method="fp8", weight_block_size=None) == Float8()
    assert read(quant_method="fbgemm_fp8") == Float8()
    assert read(quant_method="mxfp4") is None
    assert read_quantization({}, FILE) is None
