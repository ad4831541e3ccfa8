"""Laws 2 and 3 on the whole engine: trees, windows of rows, states and the command, on meshes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.batching.batch import batch_from_lengths
from instructjax.batching.packing import pack
from instructjax.cli.main import main
from instructjax.errors import UsageError
from instructjax.models.model import load_model
from instructjax.models.sharded import param_shardings
from instructjax.models.spmd import over_rows
from instructjax.prompts.request import Request
from instructjax.scoring import engine, read_scores
from instructjax.scoring.engine import Work, score_requests
from instructjax.scoring.hidden import hidden_before_targets
from instructjax.scoring.log_probs import token_log_probs
from instructjax.sharding import ShardingRules, make_mesh

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"
FURTHER = ("data=2,fsdp=4", "data=8", "fsdp=8", "fsdp=4,tensor=2")
MESHES = [
    "data=2,fsdp=2,tensor=2",
    *(pytest.param(x, marks=pytest.mark.slow) for x in FURTHER),
]


@pytest.fixture(scope="module")
def requests():
    """Shared prefixes, long and short, more rows than devices and of several shapes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(9):
        prompt = rng.integers(0, 352, rng.integers(20, 120))
        for _ in range(rng.integers(1, 4)):
            size = rng.integers(1, 60)
            ids = np.concatenate([prompt, rng.integers(0, 352, size)]).astype(np.int32)
            found.append(Request(ids=ids, spans=((len(prompt), len(ids)),), num_bytes=1))
    return found


def on(mesh, model):
    """The model, its parameters split over a mesh."""
    rules = ShardingRules()
    shardings = param_shardings(model.config, mesh, rules)
    params = jax.device_put(model.params, shardings)
    return dataclasses.replace(model, params=params, mesh=mesh, rules=rules)


@pytest.mark.parametrize("shape", MESHES)
def test_law_2_scores_do_not_depend_on_the_mesh(shape, tiny_model, requests):
    whole = [s.token_log_probs for s in score_requests(tiny_model, requests)]
    split = on(make_mesh(shape), tiny_model)
    found = [s.token_log_probs for s in score_requests(split, requests)]
    limit = 1e-5 if "tensor" in shape else 0  # heads are summed over devices: other roundings
    for ours, theirs in zip(found, whole, strict=True):
        assert np.abs(ours - theirs).max() <= limit
    states = hidden_before_targets(tiny_model, requests[:5])
    for ours, theirs in zip(hidden_before_targets(split, requests[:5]), states, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 if limit else 0)


@pytest.mark.slow
def test_one_program_a_shape_on_a_mesh_too(tiny_model, requests):
    split = on(make_mesh("data=2,fsdp=4"), tiny_model)
    work = Work()
    list(score_requests(split, requests, work=work))
    with count_compiles() as compiled:
        list(score_requests(split, requests[::-1]))
    assert len(work.programs) <= 3 and not compiled


class count_compiles:
    """Names of the programs compiled within the block."""

    def __enter__(self) -> list[str]:
        self.found: list[str] = []

        def note(event: str, duration_secs: float, **kwargs: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                self.found.append(event)

        self._note = note
        jax.monitoring.register_event_duration_secs_listener(note)
        return self.found

    def __exit__(self, *exc_info: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["data=2,fsdp=4", "data=2,fsdp=2,tensor=2"])
def test_law_3_gradients_are_gathered_and_scattered(shape, tiny_model):
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.integers(0, 352, (8, 24)), "int32")
    batch = batch_from_lengths(ids, jnp.full(8, 5), jnp.arange(16, 24))

    def loss(graphdef, params, batch):
        return token_log_probs(graphdef, params, batch).sum()

    whole = jax.jit(jax.grad(lambda p: loss(tiny_model.graphdef, p, batch)))(tiny_model.params)
    split = on(make_mesh(shape), tiny_model)
    logs = over_rows(token_log_probs, split.graphdef, mesh=split.mesh, rules=split.rules)
    found = jax.jit(jax.grad(lambda p: logs(p, batch).sum()))(split.params)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        scale = np.abs(np.asarray(theirs)).max()
        assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 1e-5 * scale
    for ours, param in zip(jax.tree.leaves(found), jax.tree.leaves(split.params), strict=True):
        assert ours.sharding.is_equivalent_to(param.sharding, ours.ndim)


def test_no_device_holds_more_than_a_layer_beside_its_share(random_model):
    """Eight layers over eight devices: gathered one at a time, not all at once."""
    model = random_model(num_layers=8, hidden_size=64, intermediate_size=512, vocab_size=64)
    split = on(make_mesh("fsdp=8"), model)
    ids = np.arange(40, dtype=np.int32)
    (row,) = pack([Request(ids=ids, spans=((30, 40),), num_bytes=1)])
    batch = jax.tree.map(lambda x: np.repeat(np.asarray(x), 8, 0), row.batch)
    compute = over_rows(token_log_probs, split.graphdef, mesh=split.mesh, rules=split.rules)
    lowered = jax.jit(lambda params: compute(params, batch)).lower(split.params)
    memory: Any = lowered.compile().memory_analysis()
    layers = sum(x.nbytes for x in jax.tree.leaves(model.params["layers"]))
    assert memory.temp_size_in_bytes < layers / 2


@pytest.mark.slow
def test_the_command_on_a_mesh(tmp_path, capsys):
    rows = [{"instruction": f"say {i}", "input": "x" * i, "output": ["a", "bc"]} for i in range(30)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options in {"one": [], "split": ["--mesh", "data=2,fsdp=4"]}.items():
        out = str(tmp_path / f"{name}.parquet")
        assert main(["score", str(data), "--model", str(TINY), "--out", out, *options]) == 0
    one, split = (read_scores(tmp_path / f"{name}.parquet") for name in ("one", "split"))
    assert one.equals(split)
    assert (
        main(["score", str(data), "--model", str(TINY), "--out", "x.csv", "--mesh", "data=3"]) == 2
    )
    assert "sizes whose product is 8" in capsys.readouterr().err


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="do not divide over tensor=8"):
        load_model(TINY, mesh=make_mesh("tensor=8"))


def test_empty_rows_are_computed_and_counted(tiny_model, requests):
    work = Work()
    list(score_requests(on(make_mesh("data=8"), tiny_model), requests[:3], work=work))
    # one row of tokens, and one without any for each other device
    ((length, _),) = work.programs
    assert work.computed == 8 * length
    assert work.useful < length


def test_rows_of_a_mesh_that_do_not_fit_are_split(tiny_model, requests, monkeypatch):
    split = on(make_mesh("data=8"), tiny_model)
    whole = [s.token_log_probs.tobytes() for s in score_requests(split, requests)]
    real, refused = engine.token_scores_on_mesh, []

    def refuse_once(graphdef, params, batch, **options):
        if not refused:
            refused.append(batch.tokens.shape)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(graphdef, params, batch, **options)

    monkeypatch.setattr(engine, "token_scores_on_mesh", refuse_once)
    found = [s.token_log_probs.tobytes() for s in score_requests(split, requests)]
    assert refused and found == whole
