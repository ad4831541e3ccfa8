"""FLOPs in closed form against a count of every product that an interpreter carries out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Literal

from instructjax.batching.batch import batch_from_lengths
from instructjax.finetuning.batch import SftBatch
from instructjax.finetuning.losses import sft_loss
from instructjax.finetuning.partition import split_params
from instructjax.models import attention_tiles
from instructjax.models.config import DecoderConfig, LayerKind, RopeConfig
from instructjax.models.lora import LORA, LoraConfig, add_lora
from instructjax.models.model import abstract_decoder
from instructjax.planning.flops import count_forward, count_pairs, count_step
from instructjax.scoring.log_probs import token_log_probs, token_scores

ROWS, LENGTH, TILE = 2, 24, 8
FORMS = {"tiles": 0, "whole": 1}  # the branch of attention that the platform chooses


@pytest.fixture(autouse=True)
def one_tile_at_a_time(monkeypatch):
    """Of tiles side by side some are computed in vain: those that see less, and behind the last."""
    monkeypatch.setattr(attention_tiles, "TOGETHER", 1)


class Counter:
    """Runs a traced function operation by operation, loops as often as they go round."""

    def __init__(self, branch):
        self.branch, self.flops = branch, 0

    def __call__(self, function, *args):
        closed = jax.make_jaxpr(function)(*args)
        return self.run(closed.jaxpr, closed.consts, jax.tree.leaves(args))

    def run(self, jaxpr, consts, args):
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var):
            return var.val if isinstance(var, Literal) else known[var]

        for eqn in jaxpr.eqns:
            found = self.step(eqn, [read(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def step(self, eqn, args):
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = np.prod([args[0].shape[axis] for axis in contracted], dtype=int)
            self.flops += 2 * int(np.prod(eqn.outvars[0].aval.shape, dtype=int)) * int(inner)
        elif name == "platform_index":
            return [jnp.int32(self.branch)]
        elif name == "cond":
            chosen = params["branches"][min(max(int(args[0]), 0), len(params["branches"]) - 1)]
            return self.run(chosen.jaxpr, chosen.consts, args[1:])
        elif name == "while":
            return self.loop(params, args)
        elif name == "scan":
            return self.scan(params, args)
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if inner is not None and name != "scan":
            closed = hasattr(inner, "consts")
            return self.run(inner.jaxpr if closed else inner, inner.consts if closed else [], args)
        found = eqn.primitive.bind(*args, **params)
        return found if eqn.primitive.multiple_results else [found]

    def loop(self, params, args):
        first, second = params["cond_nconsts"], params["body_nconsts"]
        cond, body = params["cond_jaxpr"], params["body_jaxpr"]
        state = args[first + second :]
        while bool(self.run(cond.jaxpr, cond.consts, [*args[:first], *state])[0]):
            state = self.run(body.jaxpr, body.consts, [*args[first : first + second], *state])
        return state

    def scan(self, params, args):
        consts, carried = params["num_consts"], params["num_carry"]
        state, each = args[consts : consts + carried], args[consts + carried :]
        order = range(params["length"])
        outs = {}
        for i in reversed(order) if params["reverse"] else order:
            body, own = params["jaxpr"], [x[i] for x in each]
            found = self.run(body.jaxpr, body.consts, [*args[:consts], *state, *own])
            state, outs[i] = found[:carried], found[carried:]
        columns = zip(*(outs[i] for i in order), strict=True)
        return [*state, *(jnp.stack(column) for column in columns)]


def make_batch(vocab):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, vocab, (ROWS, LENGTH)), jnp.int32)
    full = jnp.full((ROWS,), LENGTH)
    return batch_from_lengths(tokens, jnp.full((ROWS,), LENGTH - 7), full, tile=TILE)


MODELS = {
    "plain": {},
    "windows": {
        "layers": (
            LayerKind(window=11, rope=RopeConfig()),
            LayerKind(window=None, rope=RopeConfig()),
        )
    },
    "untied, wide values": {"tie_embeddings": False, "num_kv_heads": 4},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_forward_is_counted_as_it_is_carried_out(random_model, fields, form):
    model = random_model(**fields)
    batch = make_batch(model.config.vocab_size)
    for function in (token_log_probs, token_scores):
        counter = Counter(FORMS[form])
        counter(lambda p, f=function: f(model.graphdef, p, batch), model.params)
        # the head takes positions in chunks, and pads the last: here to all of them
        found = count_forward(
            model.config,
            model.params,
            rows=ROWS,
            length=LENGTH,
            form=form,
            tile=TILE,
            scored=ROWS * LENGTH,
        )
        assert counter.flops == found.total


def test_where_every_expert_multiplies_every_row():
    """A row an expert of a token, times the three matrices of all experts."""
    config = DecoderConfig(
        family="mixtral",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        norm_eps=1e-5,
        max_positions=64,
        num_experts=8,
        experts_per_token=2,
    )
    params = abstract_decoder(config, "float32")[1]
    few, all_of_them = (
        count_forward(config, params, rows=3, length=16, every_expert=every).layers
        for every in (False, True)
    )
    pair = 2 * 3 * 32 * 48
    assert all_of_them - few == 2 * (3 * 16) * 2 * (8 - 1) * pair


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
@pytest.mark.parametrize("form", FORMS)
def test_backward_is_counted_as_it_is_carried_out(random_model, form, remat):
    model = random_model()
    batch = make_batch(model.config.vocab_size)
    weights = jnp.ones(batch.sources.shape)
    sft = SftBatch(batch=batch, weights=weights)

    def loss(params):
        return sft_loss(model.graphdef, params, sft, remat=remat)[0]

    counter = Counter(FORMS[form])
    counter(jax.grad(loss), model.params)
    found = count_step(
        model.config,
        model.params,
        rows=ROWS,
        length=LENGTH,
        remat=remat,
        form=form,
        tile=TILE,
    )
    assert counter.flops == found.total


def test_frozen_kernels_take_no_gradient(random_model):
    model = random_model()
    graphdef, params = add_lora(model.graphdef, model.params, LoraConfig(rank=3), jax.random.key(0))
    trained, frozen = split_params(params, LORA)
    batch = make_batch(model.config.vocab_size)
    sft = SftBatch(batch=batch, weights=jnp.ones(batch.sources.shape))

    def loss(trained):
        return sft_loss(graphdef, nnx.merge_state(trained, frozen), sft, remat="dots")[0]

    counter = Counter(FORMS["tiles"])
    counter(jax.grad(loss), trained)
    found = count_step(
        model.config,
        (trained, frozen),
        rows=ROWS,
        length=LENGTH,
        remat="dots",
        form="tiles",
        tile=TILE,
        trained=trained,
    )
    assert counter.flops == found.total


def test_xla_counts_the_same_where_nothing_loops(random_model):
    """One layer, one chunk of positions, one tile of the vocabulary: XLA sees every product."""
    model = random_model(
        hidden_size=256,
        intermediate_size=512,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        num_layers=1,
        vocab_size=512,
    )
    rng = np.random.default_rng(0)
    layer = jax.tree.map(lambda x: x[0], nnx.to_pure_dict(model.params)["layers"])
    table = nnx.to_pure_dict(model.params)["embed"]["embedding"]
    x = jnp.asarray(rng.standard_normal((64, 256)), jnp.float32)

    def unrolled(x):
        q, k, v = ((x @ layer["attention"][n]["kernel"]).reshape(64, 4, 64) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        x = jnp.einsum("hqk,khd->qhd", weights, v).reshape(64, 256)
        x = x @ layer["attention"]["o"]["kernel"]
        gate, up = x @ layer["mlp"]["gate"]["kernel"], x @ layer["mlp"]["up"]["kernel"]
        return (gate * up) @ layer["mlp"]["down"]["kernel"] @ table.T

    cost: Any = jax.jit(unrolled).lower(x).compile().cost_analysis()
    found = count_forward(model.config, model.params, rows=1, length=64, form="whole").total
    # beside products XLA counts the softmax and the gate's product
    assert found < cost["flops"] < 1.01 * found


def test_published_counts():
    """6 N D for the whole of Llama 3.1 8B but the embedding, and Kaplan et al.'s 2 N forward."""
    from instructjax.models.model import abstract_decoder
    from instructjax.planning.models import read_decoder_config

    config = read_decoder_config("llama-3.1-8b")
    params = abstract_decoder(config, "float32")[1]
    products = config.num_params - config.vocab_size * config.hidden_size - 65 * config.hidden_size
    found = count_step(config, params, rows=1, length=1024, again=False)
    assert found.layers + found.head == 6 * products * 1024
    assert found.attention == 3 * 32 * 2 * 2 * 4096 * (1024 * 1025 // 2)


@pytest.mark.parametrize("window", [None, 1, 5, 16, 17, 40])
def test_pairs_by_hand(window):
    length, tile = 24, 8
    query, key = np.mgrid[:length, :length]
    seen = (key <= query) & (query - key < (window or length))
    assert count_pairs(length, window, "visible", tile) == seen.sum()
    tiles = seen.reshape(3, tile, 3, tile).any((1, 3)).sum() * tile * tile
    assert count_pairs(length, window, "tiles", tile) == tiles
