"""What is particular to DeepSeek's GGUF files; `test_gguf_families.py` has the rest."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from instructjax.errors import ModelError
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.gguf_joined import join_shapes, read_joined
from instructjax.models.checkpoints.params import load_params

FILE = Path(__file__).parents[1] / "fixtures" / "gguf" / "deepseek-v3.gguf"
HEADS, STILL, TURNED, VALUE_DIM, RANK = 4, 8, 6, 10, 12


def read(path):
    weights = GgufWeights(path)
    return weights.config, load_params(weights.family, weights.config, weights, np.float32)


def test_files_from_before_the_split_are_the_same_model(edit_gguf, tmp_path):
    """They have `attn_kv_b` whole, and heads as wide as they are computed."""

    def join(tensors):
        for layer in range(3):
            keys = tensors.pop(f"blk.{layer}.attn_k_b.weight")
            values = tensors.pop(f"blk.{layer}.attn_v_b.weight")
            rows = [row for h in range(HEADS) for row in (keys[h].T, values[h])]
            tensors[f"blk.{layer}.attn_kv_b.weight"] = np.concatenate(rows)
        return tensors

    path = edit_gguf(
        FILE,
        tmp_path / "old.gguf",
        {
            "deepseek2.attention.key_length_mla": None,
            "deepseek2.attention.value_length_mla": None,
            "deepseek2.attention.key_length": STILL + TURNED,
            "deepseek2.attention.value_length": VALUE_DIM,
            "deepseek2.attention.head_count_kv": HEADS,
        },
        join,
    )
    (config, found), (same, wanted) = read(path), read(FILE)
    assert config == same
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(("start", "stop"), [(0, 72), (0, 5), (7, 37), (18, 54), (71, 72)])
def test_any_rows_of_the_joined_matrix(start, stop):
    rng = np.random.default_rng(0)
    stored = {
        "blk.0.attn_k_b.weight": rng.standard_normal((HEADS, RANK, STILL), np.float32),
        "blk.0.attn_v_b.weight": rng.standard_normal((HEADS, VALUE_DIM, RANK), np.float32),
    }
    keys, values = stored.values()
    whole = np.concatenate([row for h in range(HEADS) for row in (keys[h].T, values[h])])
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    assert join_shapes(shapes) == {"blk.0.attn_kv_b.weight": whole.shape}
    found = read_joined(
        "blk.0.attn_kv_b.weight", start, stop, shapes, lambda name, a, b: stored[name][a:b]
    )
    np.testing.assert_array_equal(found, whole[start:stop])


def test_one_half_alone_is_no_matrix():
    shapes = {"blk.0.attn_k_b.weight": (4, 12, 8), "blk.1.attn_v_b.weight": (4, 10, 12)}
    assert join_shapes(shapes) == shapes


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("expert_gating_func", 1, "expert_gating_func` = 1 is not supported, only 2"),  # V2
        ("expert_gating_func", None, "expert_gating_func`, which the file does not say, is not"),
        ("rope.scaling.yarn_log_multiplier", None, "yarn_log_multiplier` is missing"),
        ("leading_dense_block_count", 3, "must leave layers that have experts"),
    ],
)
def test_what_would_be_another_function_is_refused(key, value, words, edit_gguf, tmp_path):
    path = edit_gguf(FILE, tmp_path / "m.gguf", {f"deepseek2.{key}": value})
    with pytest.raises(ModelError, match=words):
        GgufWeights(path)


@pytest.mark.parametrize(("experts", "groups"), [(256, (8, 4)), (6, (1, 1))])
def test_groups_that_older_files_do_not_name(experts, groups, edit_gguf, tmp_path):
    """Those of 256 experts are V3 and R1, whose groups are published."""
    names = ("expert_group_count", "expert_group_used_count")
    changes = {f"deepseek2.{name}": None for name in names} | {"deepseek2.expert_count": experts}
    config = GgufWeights(edit_gguf(FILE, tmp_path / "m.gguf", changes)).config
    assert (config.router_groups, config.router_groups_used) == groups
