"""GGUF files of llama.cpp's own converter have the parameters of the checkpoint, bit for bit.

See `make_gguf_fixtures.py`. What such a file cannot say is written here: llama.cpp fixes it for
each architecture, and the tiny checkpoints differ from it.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from instructjax.errors import ModelError
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.gguf_file import read_gguf_file
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.params import load_params
from instructjax.models.config import NO_ROPE, RopeConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.stem for path in (FIXTURES / "gguf").glob("*.gguf"))
# Fields that the file has no words for.
UNSAID = {
    "gemma2": {"attention_scale": 8**-0.5},
    "gpt-oss": {"swiglu_limit": 7.0},
    "gpt2-untied": {"attention_scale": None},
    "mistral-window": {"family": "llama", "layers": ()},
    "mixtral-window": {"layers": ()},
    "olmoe-each-head": {"normalize_experts": False},
    "qwen2-window-yarn": {"layers": ()},
}
# Where llama.cpp's rule gives every layer of so few a window: what their positions are.
NEAR = {"gemma3": RopeConfig(theta=1000.0)}


def from_folder(name, dtype: Any = np.float32):
    family, config, weights = open_folder(FIXTURES / "families" / name)
    return config, load_params(family, config, weights, dtype)


def plain(value):
    """Nested values, numbers as float32 has them, without truncation, which no file names."""
    if isinstance(value, RopeConfig):
        value = dataclasses.replace(value, truncate=True)
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_configuration_are_those_of_the_folder(name):
    weights = GgufWeights(FIXTURES / "gguf" / f"{name}.gguf")
    config, wanted = from_folder(name)
    config = dataclasses.replace(config, **UNSAID.get(name, {}))
    if name in NEAR:
        kinds = (dataclasses.replace(kind, window=8, rope=NEAR[name]) for kind in config.layers)
        config = dataclasses.replace(config, layers=tuple(kinds))
    assert plain(weights.config) == plain(config)
    found = load_params(weights.family, weights.config, weights, np.float32)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_in_bfloat16_are_those_of_the_folder(name):
    """Gemma's norms lie in the file with 1 added, which bfloat16 would round off."""
    weights = GgufWeights(FIXTURES / "gguf" / f"{name}.gguf")
    found = load_params(weights.family, weights.config, weights, ml_dtypes.bfloat16)
    _, wanted = from_folder(name, ml_dtypes.bfloat16)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


def test_every_architecture_is_shown():
    from instructjax.models.families import FAMILIES, GGUF_ARCHITECTURES

    shown = {
        GgufWeights(FIXTURES / "gguf" / f"{name}.gguf").header.metadata["general.architecture"]
        for name in NAMES
    }
    assert shown == set(GGUF_ARCHITECTURES)
    shown = {GgufWeights(FIXTURES / "gguf" / f"{name}.gguf").family.model_type for name in NAMES}
    # llama.cpp has no architecture for layers of Ministral that differ in their windows.
    assert shown == {family.model_type for family in FAMILIES} - {"ministral"}


def test_layers_without_positions_and_with_windows_alternate():
    config = GgufWeights(FIXTURES / "gguf" / "cohere2.gguf").config
    assert [kind.window for kind in config.layers] == [8, 8, 8, None]
    assert [kind.rope == NO_ROPE for kind in config.layers] == [False, False, False, True]


def test_a_key_that_is_not_known_is_refused(tmp_path):
    data = (FIXTURES / "gguf" / "qwen3-tied-wide-heads.gguf").read_bytes()
    old, new = b"qwen3.attention.value_length", b"qwen3.attention.other_length"
    assert data.count(old) == 1 and len(old) == len(new)
    (tmp_path / "m.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(ModelError, match=r"qwen3\.attention\.other_length.*not a supported option"):
        GgufWeights(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("cohere", {"command-r.rope.scaling.type": [True, False]}, "rope.scaling.type"),
        ("phi3-window", {"phi3.attention.sliding_window": [2, 2, 2]}, "attention.sliding_window"),
        ("granite", {"granite.attention.head_count_kv": [1, 2]}, "attention.head_count_kv"),
        ("olmo3", {"olmo2.attention.sliding_window_pattern": [True] * 3}, "pattern"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(name, changes, named, monkeypatch):
    def read(path):
        header = read_gguf_file(path)
        values = {key: np.array(value) for key, value in changes.items()}
        return dataclasses.replace(header, metadata={**header.metadata, **values})

    monkeypatch.setattr("instructjax.models.checkpoints.gguf.read_gguf_file", read)
    with pytest.raises(ModelError, match=named):
        GgufWeights(FIXTURES / "gguf" / f"{name}.gguf")


@pytest.mark.parametrize("key", ["general.name", "general.base_model.0.repo_url"])
def test_a_window_that_the_file_cannot_say_is_warned_of_by_name(key, tiny, tmp_path):
    def edit(writer):
        writer.add_string(key, "https://hf.co/mistralai/Mistral-7B-Instruct-v0.1")

    path = tiny().write_gguf(tmp_path / "m.gguf", edit=edit)
    with pytest.warns(UserWarning, match="no `sliding_window` for Mistral's models"):
        assert GgufWeights(path).config.layers == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GgufWeights(tiny().write_gguf(tmp_path / "llama.gguf"))
