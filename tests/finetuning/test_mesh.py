"""Law 3 and 7 of whole steps and runs on meshes of eight virtual devices."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from instructjax.errors import UsageError
from instructjax.finetuning.batch import make_sft_batch, stack_batches
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.loop import finetune
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.placement import place_state
from instructjax.finetuning.prepare import load_for_training, settle_rows
from instructjax.finetuning.restore import config_of, load_trained
from instructjax.finetuning.state import make_state
from instructjax.finetuning.step import make_train_step
from instructjax.models.lora import LORA, LoraConfig, add_lora
from instructjax.sharding import choose_mesh, make_mesh

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
STEPS = 3
MESHES = ("data=8", "fsdp=8", "data=2,fsdp=4", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")
# Rows of so many tokens are split over four devices.
LONG = 2 * 4 * 15 + 1
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "normalize_experts": True}


def train(model, draw, *, lora, optimizer, mesh=None, length=32, dtype="float32"):
    """Steps of two micro-batches of eight rows, whose weights differ; the last state."""
    graphdef, params = model.graphdef, model.params
    if lora:
        graphdef, params = add_lora(graphdef, params, LoraConfig(rank=2), jax.random.key(1))
    # Epsilon far above rounding: where a gradient is zero, Adam would divide noise by noise.
    chosen = make_optimizer(
        OptimizerConfig(name=optimizer, learning_rate=3e-3, warmup_steps=1, epsilon=1e-4), STEPS
    )
    state = make_state(params, chosen, trainable=LORA if lora else ("*",))
    if mesh is not None:
        state = place_state(state, mesh)
    step = make_train_step(graphdef, chosen, mesh=mesh, remat="dots", compute_dtype=dtype)
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    rng = np.random.default_rng(0)
    told = []
    for _ in range(STEPS):
        longest = length // 2 - 1
        sizes = [[rng.integers(4, longest, 2) for _ in range(count)] for count in (8, 5)]
        micro = [
            make_sft_batch([draw(rng, size) for size in part], length=length, num_rows=8, tile=16)
            for part in sizes
        ]
        state, metrics = step(state, stack_batches(micro))
        assert bool(metrics.finite)
        told.append([float(metrics.loss), float(metrics.grad_norm), float(metrics.weight)])
    assert step._cache_size() == 1  # type: ignore
    if mesh is not None:
        for sharding, leaf in zip(before, jax.tree.leaves(state), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return state, told


@pytest.fixture(scope="module")
def alone(random_model, draw):
    """The same steps on one device, by what is trained and how; each is computed once."""
    made = {}

    def get(model, **options):
        key = tuple(options.items())
        options.pop("experts", None)  # tells models apart
        if key not in made:
            made[key] = train(model, draw, **options)
        return made[key]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "optimizer", "shape"),
    [
        *((lora, "adamw", shape) for lora in (False, True) for shape in MESHES),
        (False, "muon", "data=2,fsdp=4"),
    ],
)
def test_law_3_a_step_on_a_mesh_is_that_of_one_device(
    random_model, draw, alone, lora, optimizer, shape
):
    model = random_model(seed=3)
    mesh = make_mesh(shape)
    found, told = train(model, draw, lora=lora, optimizer=optimizer, mesh=mesh)
    expected, told_alone = alone(model, lora=lora, optimizer=optimizer)
    np.testing.assert_allclose(told, told_alone, rtol=2e-5)
    start = make_state(model.params, make_optimizer(OptimizerConfig(), 1)).trainable
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = max(float(np.abs(b).max()), 1e-6)
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=1e-4 * size)
    if not lora:
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), found.trainable, start)
        assert min(jax.tree.leaves(moved)) > 1e-4  # far above what is compared
    # Parameters and moments are split: no device holds all of them.
    axes = {"mlp.up": ("fsdp", "tensor")}
    if lora:  # of [in, rank] and [rank, out], the long side
        axes = {"up.lora_a": ("fsdp",), "up.lora_b": ("tensor",)}
        axes |= {"down.lora_a": ("tensor",), "down.lora_b": ("fsdp",)}
    for name, over in axes.items():
        split = [
            leaf
            for path, leaf in jax.tree.leaves_with_path((found.trainable, found.opt_state))
            if name in jax.tree_util.keystr(path, simple=True, separator=".") and leaf.ndim == 3
        ]
        assert len(split) == (2 if optimizer == "muon" else 3)
        for leaf in split:
            assert isinstance(leaf.sharding, NamedSharding)
            parts = math.prod(mesh.shape.get(axis, 1) for axis in over)
            assert leaf.addressable_shards[0].data.size * parts == leaf.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "shape", "fields", "length"),
    [
        (False, "fsdp=2,context=4", {}, LONG),
        (False, "data=2,context=2,tensor=2", {}, LONG),
        (True, "fsdp=2,context=2,tensor=2", {}, LONG),
        (False, "fsdp=2,expert=4", EXPERTS, 32),
        (False, "data=2,expert=2,tensor=2", EXPERTS, 32),
        (False, "fsdp=2,expert=2,context=2", EXPERTS, LONG),
    ],
)
def test_law_3_a_step_over_context_and_expert(
    random_model, draw, alone, lora, shape, fields, length
):
    model = random_model(seed=3, **fields)
    found, told = train(
        model, draw, lora=lora, optimizer="adamw", mesh=make_mesh(shape), length=length
    )
    expected, told_alone = alone(
        model, lora=lora, optimizer="adamw", length=length, experts=bool(fields)
    )
    np.testing.assert_allclose(told, told_alone, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = max(float(np.abs(b).max()), 1e-6)
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=1e-4 * size)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["fsdp=2,context=4", "data=2,context=4", "fsdp=2,expert=4"])
def test_a_bfloat16_step_over_context_and_expert(random_model, draw, shape):
    """What is added up is added up in float32; a sum that XLA makes by itself ended the process."""
    model = random_model(seed=3, **(EXPERTS if "expert" in shape else {}))
    options = {"lora": False, "optimizer": "adamw", "length": LONG}
    _, told = train(model, draw, mesh=make_mesh(shape), dtype="bfloat16", **options)
    _, exact = train(model, draw, **options)
    np.testing.assert_allclose(told, exact, rtol=0.03)


def test_rows_too_short_for_context_are_warned_of(random_model, draw):
    """One token more, and each of 2 x 4 pieces but the last has a tile of 16."""
    model, optimizer = random_model(seed=3), make_optimizer(OptimizerConfig(), 1)
    mesh = make_mesh("data=2,context=4")
    state = place_state(make_state(model.params, optimizer), mesh)
    step = make_train_step(model.graphdef, optimizer, mesh=mesh)
    for length in (LONG - 1, LONG):
        rows = [draw(np.random.default_rng(0), [9, 20])]
        batch = make_sft_batch(rows, length=length, num_rows=2, tile=16)
        if length == LONG:
            jax.eval_shape(step, state, batch)
            break
        with pytest.warns(UserWarning, match=f"split over context=4.* give rows of {LONG} or more"):
            jax.eval_shape(step, state, batch)


@pytest.fixture
def config(tmp_path):
    rows = [
        {"instruction": f"Say {n}.", "input": "x " * (n * 7 % 11), "output": f"y {n}", "task": "t"}
        for n in range(48)
    ]
    for name, part in (("rows", rows[:40]), ("new", rows[40:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return FinetuneConfig(
        data=(tmp_path / "rows.jsonl",),
        eval_data=(tmp_path / "new.jsonl",),
        out=tmp_path / "run",
        model=FIXTURE,
        row_length=64,
        rows=8,
        steps=6,
        learning_rate=3e-3,
        epsilon=1e-4,
        eval_every=3,
        export="none",
    )


def run(config, name, mesh, stop=None):
    """Its reports, up to where it is left."""
    loop = finetune(dataclasses.replace(config, out=config.out / name, mesh=mesh))
    reports = []
    for report in loop:
        reports.append(report)
        if report.step == stop:
            break
    loop.close()
    return reports


def params_of(config, name):
    return [np.asarray(x) for x in jax.tree.leaves(load_trained(config.out / name).params)]


@pytest.mark.slow
def test_laws_3_and_8_a_run_goes_on_on_another_mesh(config):
    config.out.mkdir()
    one = run(config, "one", None)
    whole = run(config, "whole", "data=2,fsdp=4")
    run(config, "same", "data=2,fsdp=4", stop=4)
    by_default = dataclasses.replace(config, rows=None)
    run(by_default, "other", "data=2,fsdp=4", stop=4)
    same = run(config, "same", "data=2,fsdp=4")
    other = run(by_default, "other", "fsdp=4,tensor=2")
    assert [r.step for r in same] == [r.step for r in other] == [5, 6]
    # The same mesh: bit for bit. Others: the same but for rounding.
    assert [r.loss for r in same] == [r.loss for r in whole[-2:]]
    for a, b in zip(params_of(config, "same"), params_of(config, "whole"), strict=True):
        np.testing.assert_array_equal(a, b)
    for found in (whole, other):
        for a, b in zip(found, one[-len(found) :], strict=True):
            np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
            assert (a.held_out is None) == (b.held_out is None)
            if a.held_out is not None:
                for key, cell in a.held_out.cells.items():
                    assert abs(cell.log_prob - b.held_out.cells[key].log_prob) < 1e-3
    for name in ("whole", "other"):
        for a, b in zip(params_of(config, name), params_of(config, "one"), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_rows_that_do_not_divide_are_refused(config):
    with pytest.raises(UsageError, match="6 rows do not divide over the 4 devices of data=2,fsdp"):
        run(dataclasses.replace(config, rows=6), ".", "data=2,fsdp=2,tensor=2")


@pytest.mark.parametrize(
    ("mesh", "rows"), [(None, 4), ("data=2,fsdp=2,tensor=2", 4), ("fsdp=8", 8)]
)
def test_by_default_rows_divide_over_the_mesh(config, mesh, rows):
    model, _ = load_for_training(config, choose_mesh(mesh))
    by_default = dataclasses.replace(config, rows=None)
    assert settle_rows(by_default, model) == dataclasses.replace(config, rows=rows)
    for earlier, kept in ((16, 16), (9, 9 if mesh is None else rows)):
        assert settle_rows(by_default, model, earlier).rows == kept


@pytest.mark.slow
def test_a_run_keeps_its_rows_on_another_mesh(config):
    config = dataclasses.replace(config, rows=None, eval_data=(), steps=2)
    config.out.mkdir()
    reports = run(config, "other", "fsdp=8", stop=1) + run(config, "other", None)
    assert [report.step for report in reports] == [1, 2]
    assert config_of(config.out / "other").rows == 8
    afresh = dataclasses.replace(config, overwrite=True)
    reports = run(afresh, "again", "fsdp=8", stop=1) + run(afresh, "again", None)
    assert [report.step for report in reports] == [1, 2]
    assert len(run(afresh, "other", None)) == 2 and config_of(config.out / "other").rows == 4
