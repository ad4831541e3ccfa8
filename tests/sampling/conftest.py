"""What tests of sampling share: prompts, and models of every kind of decoder."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from instructjax.models.config import LayerKind, RopeConfig
from instructjax.sampling import PromptToSample

WINDOWS = (LayerKind(window=5, rope=RopeConfig()), LayerKind(rope=RopeConfig(theta=100.0)))
# Parts of decoders that a step over a cache must get right, in few models.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows, ropes, sinks, softcaps": {
        "layers": WINDOWS,
        "sinks": True,
        "attention_softcap": 3.0,
        "logit_softcap": 8.0,
        "qk_norm": "head",
        "post_norm": True,
        "attention_scale": 0.7,
    },
    "learned positions, layer norm, biases": {
        "rope": RopeConfig(kind="none"),
        "layers": (LayerKind(rope=RopeConfig(kind="none")),) * 2,
        "learned_positions": True,
        "norm": "layer",
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "gated": False,
        "tie_embeddings": True,
        "max_positions": 200,
    },
    "experts, parallel": {
        "num_experts": 4,
        "experts_per_token": 2,
        "parallel": True,
        "shared_norm": True,
        "rotary_dim": 2,
    },
}


@pytest.fixture(
    scope="session", params=[pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def any_model(request: pytest.FixtureRequest, random_model: Any) -> Any:
    """A random model of each kind."""
    return random_model(**KINDS[request.param])


@pytest.fixture(scope="session")
def prompts() -> list[PromptToSample]:
    """Of mixed lengths, one token among them; some share a beginning; several samples each."""
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 61, 20)
    ids = [rng.integers(0, 61, size) for size in (1, 2, 30, 9, 61)]
    ids += [np.concatenate([shared, rng.integers(0, 61, size)]) for size in (1, 7)]
    return [
        PromptToSample(
            ids=x.astype(np.int32), name=f"row {i}", num_samples=1 + i % 3, max_new_tokens=9 + i % 2
        )
        for i, x in enumerate(ids)
    ]


@pytest.fixture(scope="session")
def mesh() -> Any:
    """Eight devices along `data`."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
