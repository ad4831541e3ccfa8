"""Law 3 on the parts that few families have: experts, windows, sinks, latent attention."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.batching.batch import batch_from_lengths
from instructjax.models.config import RopeConfig
from instructjax.models.families import family_for_hf
from instructjax.scoring.log_probs import token_log_probs

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
MESH = (4, 2)

pytestmark = pytest.mark.slow


@pytest.fixture(params=["gpt-oss", "deepseek-v3"], scope="module")
def case(request, random_model):
    """Parameters, rows, a function of both, and what it gives on one device, by one jit."""
    file = FOLDER / request.param / "config.json"
    values = json.loads(file.read_text())
    config = family_for_hf(values, file).config_from_hf(values, file)
    if request.param == "deepseek-v3":  # frequencies by length are a part as well
        rope = RopeConfig(
            kind="longrope",
            original_max_positions=12,
            divisors=(1.0, 1.5, 2.0),
            long_divisors=(2.0, 3.0, 4.0),
        )
        config = dataclasses.replace(config, rope=rope)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    model = random_model(seed=5, **fields)
    rng = np.random.default_rng(6)
    lengths = rng.integers(6, 21, 8)
    prompts = lengths // 2
    tokens = rng.integers(0, config.vocab_size, (8, 20))
    data = tuple(jnp.asarray(x, jnp.int32) for x in (tokens, prompts, lengths))

    def run(params, *data):
        def mean(params):
            logs = token_log_probs(model.graphdef, params, batch_from_lengths(*data, tile=8))
            return logs.sum(1).mean(), logs.sum(1)

        (_, values), slopes = jax.value_and_grad(mean, has_aux=True)(params)
        return values, slopes

    expected = jax.jit(run)(model.params, *data)
    assert (expected[0] < -1).all()
    return model.params, data, run, expected


def assert_same(found, expected):
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        size = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(
            a, b, rtol=0, atol=2e-5 * size, err_msg=jax.tree_util.keystr(path)
        )


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh(MESH, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def test_law_3_shard_map(case, mesh):
    params, data, run, expected = case
    rows = P(("data", "model"))

    def step(params, *data):
        params = jax.lax.pcast(params, ("data", "model"), to="varying")
        values, slopes = run(params, *data)
        return values, jax.lax.pmean(slopes, ("data", "model"))

    specs = (P(), rows, rows, rows)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(rows, P()))
    assert_same(jax.jit(mapped)(params, *data), expected)


def test_law_3_sharded_jit_with_experts_apart(case, mesh):
    """Rows over one axis; experts, and what is as wide, over the other."""
    params, data, run, expected = case

    def place(path, leaf):
        name = jax.tree_util.keystr(path)
        apart = any(part in name for part in ("'gate'", "'up'", "'down'", "_bias'"))
        apart = apart and leaf.shape[1] % MESH[1] == 0
        spec = P(None, "model") if apart else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree.map_with_path(place, params)
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
    assert len(split) >= 3
    data = tuple(jax.device_put(x, NamedSharding(mesh, P("data"))) for x in data)
    assert_same(jax.jit(run)(params, *data), expected)
