"""Optimizers and schedules by name, against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax.errors import UsageError
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer, make_schedule
from instructjax.finetuning.partition import name_param


def move(config, params, grads, steps=1):
    optimizer = make_optimizer(config, 10)
    opt_state = optimizer.init(params)

    @jax.jit
    def once(params, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(steps):
        params, opt_state = once(params, opt_state)
    return params


@pytest.fixture(scope="module")
def params(random_model):
    return random_model(seed=1, num_layers=3).params


@pytest.fixture(scope="module")
def grads(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), params)


def each(params):
    return {name_param(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}


def test_wsd_is_warm_up_then_flat_then_down_to_the_last_step():
    config = OptimizerConfig(
        learning_rate=2.0, schedule="wsd", warmup_steps=2, decay_share=0.4, final_share=0.5
    )
    rates = [float(make_schedule(config, 10)(step)) for step in range(11)]
    np.testing.assert_allclose(rates, [0, 1, 2, 2, 2, 2, 2, 1.75, 1.5, 1.25, 1], rtol=1e-6)


def test_wsd_ends_at_the_final_share_after_a_long_warm_up():
    config = OptimizerConfig(
        learning_rate=1.0, schedule="wsd", warmup_steps=6, decay_share=0.8, final_share=0.5
    )
    rates = [float(make_schedule(config, 10)(step)) for step in range(6, 12)]
    np.testing.assert_allclose(rates, [1, 0.875, 0.75, 0.625, 0.5, 0.5], rtol=1e-6)


def test_biases_of_experts_and_corrections_of_routing_do_not_decay():
    shapes = {"gate_bias": (2, 4), "router": {"correction": (4,), "kernel": (4, 4)}}
    ones = jax.tree.map(jnp.ones, {"layers": {"mlp": shapes}}, is_leaf=lambda x: type(x) is tuple)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant"), 1
    )
    zero = jax.tree.map(jnp.zeros_like, ones)
    updates, _ = optimizer.update(zero, optimizer.init(ones), ones)
    moved = {jax.tree_util.keystr(p): float(x.min()) for p, x in jax.tree.leaves_with_path(updates)}
    (kernel,) = (value for name, value in moved.items() if "kernel" in name)
    np.testing.assert_allclose(kernel, -0.05, rtol=1e-6)
    assert [value for name, value in moved.items() if "kernel" not in name] == [0, 0]


def test_cosine_is_the_formula():
    config = OptimizerConfig(learning_rate=3.0, warmup_steps=4, final_share=0.1)
    rate = make_schedule(config, 24)
    for step in range(4, 25):
        share = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 4) / 20))
        assert float(rate(step)) == pytest.approx(3.0 * share, rel=1e-5)
    assert float(make_schedule(OptimizerConfig(schedule="constant"), 9)(7)) == pytest.approx(2e-5)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_first_steps_are_the_formula_and_decay_spares_what_it_should(name, params, grads):
    config = OptimizerConfig(
        name=name, learning_rate=0.1, schedule="constant", weight_decay=0.5, clip_norm=None
    )
    found, before, slope = each(move(config, params, grads)), each(params), each(grads)
    for key, old in before.items():
        decay = 0.0 if "norm" in key or key.startswith(("embed", "lm_head")) else 0.5
        # both move by the sign of the gradient at first
        np.testing.assert_allclose(
            found[key], old - 0.1 * (np.sign(slope[key]) + decay * old), atol=1e-4, err_msg=key
        )


def test_muon_moves_matrices_of_layers_by_orthogonal_ones_and_the_rest_by_adam(params, grads):
    config = OptimizerConfig(name="muon", learning_rate=0.1, schedule="constant", clip_norm=None)
    found, before, slope = each(move(config, params, grads)), each(params), each(grads)
    for key, old in before.items():
        step = (old - found[key]) / 0.1
        if key.startswith("layers.") and "norm" not in key:
            for own, own_slope in zip(step, slope[key], strict=True):  # each layer by itself
                after, ahead = (np.linalg.svd(m, compute_uv=False) for m in (own, own_slope))
                assert after.min() / after.max() > 2 * ahead.min() / ahead.max(), key
        else:
            # AdamW with Nesterov's momentum: at first (b1 (1 - b1) / (1 - b1^2) + 1) times the sign
            first = 0.9 * 0.1 / (1 - 0.9**2) + 1
            np.testing.assert_allclose(step, first * np.sign(slope[key]), atol=2e-3, err_msg=key)


def test_layers_are_known_by_either_stack_and_biases_of_experts_are_no_matrices():
    """First layers without experts are a stack of their own; a bias an expert has three axes."""
    rng = np.random.default_rng(0)
    up, bias = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((2, 4, 6), (2, 3, 4)))
    mlp = {"up": {"kernel": up}, "gate_bias": bias}
    params = {"dense_layers": {"mlp": mlp}, "layers": {"mlp": mlp}}
    slopes = jax.tree.map(lambda x: x + jnp.sign(x), params)
    options = {"learning_rate": 0.1, "schedule": "constant", "clip_norm": None}
    for name in ("muon", "adafactor"):
        moved = move(OptimizerConfig(name=name, **options), params, slopes)
        jax.tree.map(np.testing.assert_allclose, moved["layers"], moved["dense_layers"])
        if name == "muon":
            step = jax.tree.map(lambda old, new: (old - new) / 0.1, mlp, moved["layers"]["mlp"])
            values = np.linalg.svd(step["up"]["kernel"], compute_uv=False)
            assert values.min() / values.max() > 0.5
            first = 0.9 * 0.1 / (1 - 0.9**2) + 1
            np.testing.assert_allclose(step["gate_bias"], first * np.sign(bias), atol=2e-3)


def test_adafactor_treats_each_layer_as_a_parameter_of_its_own(params, grads):
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, clip_norm=None)
    together = each(move(config, params, grads, steps=2))
    plain = optax.adafactor(make_schedule(config, 10))
    for key in ("layers.mlp.up.kernel", "layers.mlp_norm.scale", "embed.embedding"):
        stacked = key.startswith("layers.")
        values, slopes = each(params)[key], each(grads)[key]
        for layer in range(3 if stacked else 1):
            own = jnp.asarray(values[layer] if stacked else values)
            slope = jnp.asarray(slopes[layer] if stacked else slopes)
            state = plain.init(own)
            for _ in range(2):
                updates, state = plain.update(slope, state, own)
                own = own + jnp.asarray(updates)  # type: ignore
            found = together[key][layer] if stacked else together[key]
            np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-6)


def test_clipping_is_by_the_norm_of_all_gradients(params, grads):
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.5)
    found, before, slope = each(move(config, params, grads)), each(params), each(grads)
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in slope.values()))
    assert norm > 1
    for key, old in before.items():
        np.testing.assert_allclose(found[key], old - 0.5 / norm * slope[key], atol=1e-6)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UsageError, match="no optimizer called 'adamww'"):
        make_optimizer(OptimizerConfig(name="adamww"), 3)
    with pytest.raises(UsageError, match="no optimizer called 'chain'"):
        make_optimizer(OptimizerConfig(name="chain"), 3)
    with pytest.raises(UsageError, match="sgd has no b1"):
        make_optimizer(OptimizerConfig(name="sgd", beta1=0.1), 3)


@pytest.mark.parametrize("name", ["lbfgs", "sophia", "schedule_free_adamw"])
def test_what_cannot_train_here_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} cannot be used here"):
        make_optimizer(OptimizerConfig(name=name), 3)


@pytest.mark.parametrize(
    "name", ["adamw", "adafactor", "lion", "muon", "sgd", "nadamw", "adamaxw", "adabelief"]
)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_decay_is_rate_times_share_for_every_optimizer(name, share, params, grads):
    """Without a gradient nothing else moves a parameter."""
    config = OptimizerConfig(
        name=name, learning_rate=0.01, schedule="constant", weight_decay=share, clip_norm=None
    )
    nothing = jax.tree.map(jnp.zeros_like, grads)
    found, before = each(move(config, params, nothing)), each(params)
    for key, old in before.items():
        spared = "norm" in key or key.startswith(("embed", "lm_head"))
        left = 1.0 if spared else 1 - 0.01 * share
        np.testing.assert_allclose(found[key], left * old, rtol=1e-6, atol=1e-7, err_msg=key)
