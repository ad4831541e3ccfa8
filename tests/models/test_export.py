"""Weights out: what is written is, bit for bit, what was read."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from instructjax.errors import ModelError, UsageError
from instructjax.models import load_model
from instructjax.models.checkpoints.export import export_folder
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.hf_tensors_out import hf_entries, hf_names
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors import SafetensorsFolder
from instructjax.models.checkpoints.safetensors_out import write_entries
from instructjax.models.families import FAMILIES
from instructjax.models.families.to_hf import config_to_hf

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = sorted(
    str(path.parent.relative_to(FIXTURES))
    for path in [*FIXTURES.glob("*/config.json"), *FIXTURES.glob("families/*/config.json")]
)
QUANTIZED = [name for name in FOLDERS if "fp8" in name or "mxfp4" in name]


def read(folder):
    """(family, configuration, tree of parameters as float32)."""
    family, config, weights = open_folder(folder)
    return family, config, load_params(family, config, weights, np.float32)


def stored(folder):
    """Every tensor of a folder as bytes, with its type and shape."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                array = tensors.get_tensor(name)
                found[name] = (str(array.dtype), array.shape, array.tobytes())
    return found


def write(name, folder, dtype=None):
    """The weights and configuration of a fixture, written anew."""
    family, config, params = read(FIXTURES / name)
    write_entries(folder / "model.safetensors", hf_entries(family, config, params, dtype))
    (folder / "config.json").write_text(json.dumps(config_to_hf(family, config)))
    return config, params


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in QUANTIZED])
def test_tensors_are_those_of_the_folder_bit_for_bit(name, tmp_path):
    original = stored(FIXTURES / name)
    kind = {"float32": "float32", "bfloat16": "bfloat16"}[next(iter(original.values()))[0]]
    write(name, tmp_path, kind)
    written = stored(tmp_path)
    family = read(FIXTURES / name)[0]
    if read(FIXTURES / name)[1].tie_embeddings:
        original.pop(family.tied_copy, None)
    assert set(original) == set(written)
    for key in [key for key in original if key.endswith("e_score_correction_bias")]:
        # published models have it in float32, which is what it is kept in
        kind, shape, data = original.pop(key)
        assert kind == "bfloat16" and written[key][:2] == ("float32", shape)
        wide = np.frombuffer(data, ml_dtypes.bfloat16).astype(np.float32)
        assert written.pop(key)[2] == wide.tobytes()
    assert original == written


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_written_reads_as_the_same_model(name, tmp_path):
    config, params = write(name, tmp_path)
    family, again, params_again = read(tmp_path)
    assert hf_names(family, config).keys() == SafetensorsFolder(tmp_path).shapes.keys()
    for field in dataclasses.fields(config):
        one, other = getattr(config, field.name), getattr(again, field.name)
        assert one == pytest.approx(other, rel=1e-12) if isinstance(one, float) else one == other
    assert jax.tree.structure(params) == jax.tree.structure(params_again)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(params_again), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_every_family_is_shown():
    kinds = {json.loads((FIXTURES / n / "config.json").read_text())["model_type"] for n in FOLDERS}
    assert kinds == {family.model_type for family in FAMILIES}


TEXTS = ["Say hi.", "déjà vu  <|im_end|> 12", "\n\n", "a"]


@pytest.fixture(scope="module", params=["llama-tied", "llama-sharded-bf16"])
def exported(request, tmp_path_factory):
    model = load_model(FIXTURES / request.param)
    folder = tmp_path_factory.mktemp("out") / "model"
    told = []
    export_folder(
        model,
        folder,
        max_shard_bytes=60_000,
        progress=lambda done, total: told.append((done, total)),
    )
    return model, folder, told


def test_a_folder_reads_as_the_model_that_was_written(exported):
    model, folder, _ = exported
    again = load_model(folder)
    assert again.config == model.config and again.dtype == model.dtype
    same = jax.tree.map(np.array_equal, model.params, again.params)
    assert jax.tree.all(same)
    ours, theirs = model.tokenizer, again.tokenizer
    assert [ours.encode(t).tolist() for t in TEXTS] == [theirs.encode(t).tolist() for t in TEXTS]
    for what in ("chat_template", "bos_id", "eos_ids", "adds_bos", "special_ids", "vocab_size"):
        assert getattr(ours, what) == getattr(theirs, what), what
    assert ours.special_tokens == theirs.special_tokens


def test_shards_are_of_the_size_asked_for_and_the_progress_ends(exported):
    _, folder, told = exported
    shards = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 1 and set(index["weight_map"].values()) == {s.name for s in shards}
    sizes = [sum(len(data) for *_, data in stored(folder).values())]
    assert index["metadata"]["total_size"] == sizes[0] == told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_transformers_reads_the_tokenizer_and_its_template(exported):
    from transformers import AutoTokenizer

    model, folder, _ = exported
    theirs = AutoTokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        assert (
            theirs(text, add_special_tokens=False)["input_ids"]
            == model.tokenizer.encode(text).tolist()
        )
    assert theirs.chat_template == model.tokenizer.chat_template
    generation = json.loads((folder / "generation_config.json").read_text())
    ends = generation["eos_token_id"]
    assert (ends if isinstance(ends, list) else [ends]) == list(model.tokenizer.eos_ids)


def test_float16_holds_what_it_can(tiny_model, tmp_path):
    folder = export_folder(tiny_model, tmp_path / "half", dtype="float16")
    assert {kind for kind, *_ in stored(folder).values()} == {"float16"}
    large = jax.tree.map(lambda x: x.at[0].set(1e6) if x.ndim == 2 else x, tiny_model.params)
    large = dataclasses.replace(tiny_model, params=large)
    for place, replace in ("large", False), ("half", True):
        with pytest.raises(ModelError, match="beyond the range of float16"):
            export_folder(large, tmp_path / place, dtype="float16", replace=replace)
    assert load_model(folder).config == tiny_model.config, "what it would replace stands"
    assert os.listdir(tmp_path) == ["half"], "what failed leaves nothing"


def test_bfloat16_is_rounded_once_to_the_nearest(tiny_model, tmp_path):
    folder = export_folder(tiny_model, tmp_path / "bf16", dtype="bfloat16")
    again = load_model(folder, dtype="bfloat16")
    for ours, theirs in zip(
        jax.tree.leaves(tiny_model.params), jax.tree.leaves(again.params), strict=True
    ):
        assert np.array_equal(np.asarray(ours).astype(ml_dtypes.bfloat16), theirs)


def test_what_exists_is_never_touched(tiny_model, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(UsageError, match="exists already"):
            export_folder(tiny_model, tmp_path / name)
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        export_folder(tiny_model, tmp_path / "new", dtype="int8")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "there"]


def test_a_folder_is_replaced_where_that_is_asked_for(tiny_model, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    folder = export_folder(tiny_model, tmp_path / "there", replace=True)
    assert not (folder / "old").exists() and stored(folder)


def test_what_a_family_cannot_say_is_not_written(tiny_model, tmp_path):
    other = dataclasses.replace(tiny_model.config, logit_softcap=3.0)
    with pytest.raises(ModelError, match="cannot say logit_softcap = 3.0"):
        export_folder(dataclasses.replace(tiny_model, config=other), tmp_path / "out")
    assert nnx.to_pure_dict(tiny_model.params) and not os.listdir(tmp_path)
