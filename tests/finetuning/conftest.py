"""What the tests of fine-tuning share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.finetuning.batch import WeightedIds, make_sft_batch


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The script that makes PyTorch's numbers: its data, and its runs where torch is installed."""
    file = Path(__file__).parents[1] / "make_finetuning_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_finetuning_fixtures", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def draw():
    """(rng, sizes, vocab) -> sequences whose weights are 0 for a prompt and uneven after it."""

    def make(rng, sizes, vocab=61):
        sequences = []
        for size in sizes:
            weights = rng.uniform(0.2, 2, size).astype(np.float32)
            weights[: int(rng.integers(1, size))] = 0
            ids = rng.integers(0, vocab, size).astype(np.int32)
            sequences.append(WeightedIds(ids=ids, weights=weights))
        return sequences

    return make


@pytest.fixture(scope="session")
def on_device():
    """Rows of sequences to a batch of jax arrays."""

    def make(rows, **options):
        return jax.tree.map(jnp.asarray, make_sft_batch(rows, **options))

    return make
