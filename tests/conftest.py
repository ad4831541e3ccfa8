"""What all tests share: eight virtual CPU devices, tiny models, golden numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import settings

# Before anything touches a device: meshes are tested on one machine without accelerators.
jax.config.update("jax_num_cpu_devices", 8)
# Programs compiled by tests are not worth keeping, and tests should not write to a user's cache.
jax.config.update("jax_enable_compilation_cache", False)

# The first example of a test compiles; how long that takes says nothing about the test.
settings.register_profile("compiling", deadline=None)
settings.load_profile("compiling")

FIXTURES = Path(__file__).parent / "fixtures"


# They need torch, and have no doctests.
collect_ignore = ["make_fixtures.py", "make_family_fixtures.py", "make_finetuning_fixtures.py"]


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """The Llama of `fixtures/llama-tied`: ChatML, tied head, pad = eos, 352 tokens."""
    from instructjax.models.model import load_model

    return load_model(FIXTURES / "llama-tied")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], list[dict[str, Any]]]:
    """PyTorch's numbers for the sequences of a fixture; see fixtures/README.md."""

    def read(name: str) -> list[dict[str, Any]]:
        return json.loads((FIXTURES / name / "expected.json").read_text())["sequences"]

    return read


@pytest.fixture(scope="session")
def random_model(tiny_model: Any) -> Callable[..., Any]:
    """A function that makes a model with random weights: (seed, dtype, **DecoderConfig fields)."""
    from instructjax.models.config import DecoderConfig
    from instructjax.models.model import abstract_decoder

    def make(*, seed: int = 0, dtype: str = "float32", **fields: Any) -> Any:
        shape: dict[str, Any] = {
            "family": "llama",
            "vocab_size": 61,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 4,
            "norm_eps": 1e-5,
            "max_positions": 8192,
        }
        config = DecoderConfig(**{**shape, **fields})
        graphdef, abstract = abstract_decoder(config, dtype)
        rng = np.random.default_rng(seed)

        def fill(path: Any, leaf: Any) -> jax.Array:
            noise = rng.standard_normal(leaf.shape)
            name = jax.tree_util.keystr(path)
            if "scale" in name:
                value = 1 + 0.3 * noise
            elif "bias" in name or "embedding" in name or "lm_head" in name:
                value = 0.6 * noise
            else:
                value = 1.2 * noise / leaf.shape[-2] ** 0.5
            return jax.numpy.asarray(value, leaf.dtype)

        params = jax.tree.map_with_path(fill, abstract)
        return dataclasses.replace(
            tiny_model,
            name="random",
            config=config,
            graphdef=graphdef,
            params=params,
            dtype=dtype,
            fingerprint="",
        )

    return make


@pytest.fixture(scope="session")
def decode_by_hand() -> Callable[[Any, Any], np.ndarray]:
    """A decoder of numpy loops in float64: (model, ids) -> log p [n, V] of what follows each id.

    With `raw`, logits.
    """

    def norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale

    def linear(x: np.ndarray, layer: dict[str, Any]) -> np.ndarray:
        return x @ layer["kernel"] + layer.get("bias", 0)

    def turn(x: np.ndarray, theta: float) -> np.ndarray:
        length, _, dim = x.shape
        angles = np.arange(length)[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
        z = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * np.exp(1j * angles)[:, None]
        return np.concatenate([z.real, z.imag], axis=-1)

    def run(model: Any, ids: Any, *, raw: bool = False) -> np.ndarray:
        from flax import nnx

        config = model.config
        tree = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(model.params))
        x = tree["embed"]["embedding"][np.asarray(ids)]
        length = len(x)
        for number in range(config.num_layers):
            layer = jax.tree.map(lambda p, n=number: p[n], tree["layers"])
            parts = layer["attention"]
            h = norm(x, layer["attention_norm"]["scale"], config.norm_eps)
            q, k, v = (
                linear(h, parts[name]).reshape(length, -1, config.head_dim) for name in "qkv"
            )
            q, k = turn(q, config.rope.theta), turn(k, config.rope.theta)
            heads = np.zeros_like(q)
            for head, i in np.ndindex(config.num_heads, length):
                kv = head // (config.num_heads // config.num_kv_heads)
                logits = k[: i + 1, kv] @ q[i, head] / np.sqrt(config.head_dim)
                weights = np.exp(logits - logits.max())
                heads[i, head] = weights @ v[: i + 1, kv] / weights.sum()
            x = x + linear(heads.reshape(length, -1), parts["o"])
            h = norm(x, layer["mlp_norm"]["scale"], config.norm_eps)
            gate = linear(h, layer["mlp"]["gate"])
            x = x + linear(
                gate / (1 + np.exp(-gate)) * linear(h, layer["mlp"]["up"]), layer["mlp"]["down"]
            )
        h = norm(x, tree["final_norm"]["scale"], config.norm_eps)
        table = tree["embed"]["embedding"] if config.tie_embeddings else tree["lm_head"]["kernel"]
        logits = h @ table.T
        if raw:
            return logits
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    return run
