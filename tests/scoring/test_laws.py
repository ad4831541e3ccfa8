"""The laws of scoring: parity, invariance, one function everywhere, normalization, no emptiness.

Laws 9 and 10 are in test_precision.py and test_memory.py.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.batching.batch import Batch, batch_from_lengths
from instructjax.batching.packing import pack
from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.models import decoder
from instructjax.models.attention import attend_dense
from instructjax.models.config import RopeConfig
from instructjax.models.model import abstract_decoder, fill, load_model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.request import Request
from instructjax.scoring.engine import Work, score_requests
from instructjax.scoring.log_probs import (
    next_token_log_probs,
    sequence_log_probs,
    token_log_probs,
    token_scores,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.json"))


def request(ids, spans=None):
    ids = np.asarray(ids, np.int32)
    return Request(ids=ids, spans=tuple(spans or [(1, len(ids))]), num_bytes=0)


def in_spans(values, spans):
    """Values of tokens 1.. of a sequence, those in the spans only."""
    return np.concatenate([np.asarray(values)[start - 1 : stop - 1] for start, stop in spans])


# --- 1. Parity with PyTorch -----------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False], ids=["every token", "spans"])
@pytest.mark.parametrize("name", NAMES)
def test_law_1_parity_with_pytorch(name, whole, golden):
    sequences = golden(name)
    spans = [[(1, len(s["ids"]))] if whole else [tuple(x) for x in s["spans"]] for s in sequences]
    requests = [request(s["ids"], x) for s, x in zip(sequences, spans, strict=True)]
    results = list(score_requests(load_model(FIXTURES / name), requests))
    for result, sequence, chosen in zip(results, sequences, spans, strict=True):
        pick = partial(in_spans, spans=chosen)
        expected = pick(sequence["log_probs"])
        np.testing.assert_allclose(result.token_log_probs, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.entropy, pick(sequence["entropy"]), rtol=0, atol=1e-4)
        assert result.log_prob == pytest.approx(expected.sum(), abs=1e-4 * len(expected))
        rank, slack = pick(sequence["rank"]), pick(sequence["rank_slack"])
        assert (np.abs(result.rank - rank) <= slack).all()
        clear = slack == 0
        np.testing.assert_array_equal(result.greedy[clear], rank[clear] == 1)


def test_law_1_parity_of_the_form_of_attention_that_accelerators_run(
    golden, tiny_model, monkeypatch
):
    monkeypatch.setattr(
        decoder, "attend", lambda q, k, v, ends, *_, **__: attend_dense(q, k, v, ends)
    )
    sequences = golden("llama-tied")
    requests = [request(s["ids"]) for s in sequences]
    run = jax.jit(lambda params, batch: token_log_probs(tiny_model.graphdef, params, batch))
    for row in pack(requests):
        assert len(row.members) > 1
        found = run(tiny_model.params, row.batch)[0]
        for index, entries in row.members:
            expected = sequences[index]["log_probs"]
            np.testing.assert_allclose(found[entries], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-rope-linear", "llama-rope-llama3"])
def test_law_1_fixtures_would_catch_a_wrong_rope(name, golden, random_model):
    model = load_model(FIXTURES / name)
    assert model.config.rope != RopeConfig()
    fields = {**vars(model.config), "rope": RopeConfig()}
    graphdef, abstract = abstract_decoder(type(model.config)(**fields), "float32")
    wrong = fill(abstract, nnx.to_pure_dict(model.params))
    long = max(golden(name), key=lambda s: len(s["ids"]))
    (row,) = pack([request(long["ids"])])
    found = token_log_probs(graphdef, wrong, row.batch)[0, : len(long["ids"]) - 1]
    assert np.abs(found - np.array(long["log_probs"])).max() > 0.1


def test_law_1_gradients_of_the_mean_log_prob_are_those_of_pytorch(tiny_model, golden):
    requests = [request(s["ids"], [tuple(x) for x in s["spans"]]) for s in golden("llama-tied")]
    count = sum(r.num_tokens for r in requests)

    @jax.jit
    def gradient(params, batch, times):
        return jax.grad(
            lambda params: (
                (times * token_log_probs(tiny_model.graphdef, params, batch)).sum() / count
            )
        )(params)

    # A token of a shared prefix is scored once; it counts for every request that scores it.
    parts = [
        gradient(
            tiny_model.params,
            row.batch,
            np.bincount(
                np.concatenate([entries for _, entries in row.members]),
                minlength=row.batch.sources.shape[1],
            )[None].astype(np.float32),
        )
        for row in pack(requests)
    ]
    assert len(parts) == 1  # all sequences, packed in one row
    ours = nnx.to_pure_dict(parts[0])
    layers = ours["layers"]
    with np.load(FIXTURES / "llama-tied" / "gradients.npz") as wanted:
        pairs = {
            "model.embed_tokens.weight": ours["embed"]["embedding"],
            "model.layers.0.self_attn.q_proj.weight": layers["attention"]["q"]["kernel"][0].T,
            "model.layers.1.self_attn.k_proj.weight": layers["attention"]["k"]["kernel"][1].T,
            "model.layers.1.mlp.down_proj.weight": layers["mlp"]["down"]["kernel"][1].T,
            "model.layers.0.input_layernorm.weight": layers["attention_norm"]["scale"][0],
            "model.norm.weight": ours["final_norm"]["scale"],
        }
        assert set(pairs) == set(wanted.files)
        for name, found in pairs.items():
            size = np.abs(wanted[name]).max()
            np.testing.assert_allclose(found, wanted[name], rtol=0, atol=1e-4 * size, err_msg=name)


def test_demo_reference_one_pass_equals_a_forward_pass_for_every_token(tiny_model):
    """Each token scored by a pass of its own over what precedes it, as generation would see it."""
    tokenizer = tiny_model.tokenizer
    prompt = tokenizer.encode("<|im_start|>user\nSummarize the key point.<|im_end|>\n")
    response = tokenizer.encode("Jupiter is the largest planet.<|im_end|>")
    ids = np.concatenate([prompt, response])
    assert len(prompt) > 10 and len(response) > 5

    @jax.jit
    def after(prefix, length):
        batch = batch_from_lengths(prefix, jnp.ones_like(length), length, tile=8)
        return next_token_log_probs(tiny_model.graphdef, tiny_model.params, batch, length - 1)[0, 0]

    one_by_one = []
    for t in range(len(prompt), len(ids)):
        prefix = np.full((1, len(ids)), tokenizer.eos_ids[0], np.int32)
        prefix[0, :t] = ids[:t]  # nothing from t on is there
        one_by_one.append(float(after(prefix, np.array([t], np.int32))[ids[t]]))
    (scored,) = score_requests(tiny_model, [request(ids, [(len(prompt), len(ids))])])
    np.testing.assert_allclose(scored.token_log_probs, one_by_one, rtol=0, atol=1e-5)
    assert scored.log_prob == pytest.approx(sum(one_by_one), abs=1e-4)


# --- 2. Invariance --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tiny_model):
    """Requests of many lengths, each with its result when scored alone."""
    rng = np.random.default_rng(7)
    requests = []
    for length in (2, 3, 5, 8, 13, 21, 34, 55, 63, 64, 65, 90, 128, 250):
        ids = rng.integers(0, 352, length)
        first = int(rng.integers(1, length))
        spans = [(1, 1 + first // 3), (first, length)] if first > 3 else [(first, length)]
        requests.append(request(ids, spans))
    return [(r, next(score_requests(tiny_model, [r])), next(pack([r]))) for r in requests]


def same_bits(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("token_log_probs", "greedy", "entropy", "rank")
    )


def test_law_2_a_prefix_longer_than_the_standard_row_is_shared_bit_for_bit(random_model):
    model = random_model(seed=4)
    rng = np.random.default_rng(4)
    prefix = rng.integers(0, 61, 2100)
    made = [
        request([*prefix, *rng.integers(0, 61, n)], [(2100, 2100 + n)]) for n in range(5, 105, 9)
    ]
    work = Work()
    shared = list(score_requests(model, made, work=work))
    assert {length for length, _ in work.programs} == {3072} and work.computed == 3072
    for one in (made[0], made[-1]):
        (alone,) = score_requests(model, [one])
        twin = shared[made.index(one)]
        assert alone.token_log_probs.tobytes() == twin.token_log_probs.tobytes()


@settings(max_examples=30)
@given(chosen=st.lists(st.integers(0, 13), min_size=1, max_size=25))
def test_law_2_neighbours_order_and_packing_do_not_matter(chosen, pool, tiny_model):
    requests = [pool[index][0] for index in chosen]
    program = {}
    for row in pack(requests):
        for place, _ in row.members:
            program[place] = (row.batch.tokens.shape, row.batch.tile)
    for place, result in enumerate(score_requests(tiny_model, requests)):
        wanted, alone, alone_row = pool[chosen[place]]
        assert result.request is wanted
        np.testing.assert_allclose(result.token_log_probs, alone.token_log_probs, rtol=0, atol=1e-5)
        if program[place] == (alone_row.batch.tokens.shape, alone_row.batch.tile):
            assert same_bits(result, alone)


def test_law_2_pitfall_22_packed_equals_alone_bit_for_bit_in_the_same_program(pool, tiny_model):
    short = [entry for entry in pool if len(entry[0].ids) < 40]
    rows = list(pack([r for r, _, _ in short]))
    assert len(rows) == 1 and rows[0].batch.tokens.shape == (1, 128)
    for result, (_, alone, _) in zip(
        score_requests(tiny_model, [r for r, _, _ in short]), short, strict=True
    ):
        assert same_bits(result, alone)


def test_law_2_pitfall_14_batch_size_and_row_order_do_not_matter(tiny_model):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 352, (8, 40), dtype=np.int32)
    lengths = np.array([40, 2, 17, 33, 40, 9, 25, 31], np.int32)
    prompts = np.maximum(1, lengths // 3)
    run = jax.jit(lambda t, p, n: token_scores(*halves(tiny_model), batch_from_lengths(t, p, n)))
    together = run(tokens, prompts, lengths)
    order = rng.permutation(8)
    shuffled = run(tokens[order], prompts[order], lengths[order])
    for name in ("log_prob", "entropy", "rank", "greedy"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(together, name)[order])
    for row in range(8):
        one = slice(row, row + 1)
        alone = run(tokens[one], prompts[one], lengths[one])
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[row], rtol=0, atol=1e-5)


def halves(model):
    return model.graphdef, model.params


@pytest.mark.parametrize("padding", [0, 2, 351, 352, -1, -100, 2**31 - 1])
def test_law_2_pitfall_8_padding_may_hold_any_id(padding, tiny_model):
    assert tiny_model.tokenizer.eos_ids == (2,)
    ids = np.array([1, 2, 77, 2, 30, 2], np.int32)
    run = jax.jit(lambda t: token_log_probs(*halves(tiny_model), batch_from_lengths(t, *lengths)))
    lengths = jnp.array([2]), jnp.array([6])
    padded = np.full((1, 16), 5, np.int32)
    padded[0, :6] = ids
    expected = run(padded)
    padded[0, 6:] = padding
    np.testing.assert_array_equal(run(padded), expected)
    assert np.count_nonzero(expected) == 4


@pytest.mark.parametrize("width", [21, pytest.param(40, marks=pytest.mark.slow), 128, 300])
@pytest.mark.parametrize("tile", [8, pytest.param(64, marks=pytest.mark.slow), 256])
def test_law_2_pitfall_11_row_length_and_tile_do_not_matter(width, tile, tiny_model, golden):
    sequence = next(s for s in golden("llama-tied") if len(s["ids"]) == 33)
    ids = np.full((1, max(width, 33)), 9, np.int32)
    ids[0, :33] = sequence["ids"]
    batch = batch_from_lengths(jnp.asarray(ids), jnp.array([1]), jnp.array([33]), tile=tile)
    found = jax.jit(token_log_probs)(*halves(tiny_model), batch)[0, :32]
    np.testing.assert_allclose(found, sequence["log_probs"], rtol=0, atol=3e-5)


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 9))
def test_law_2_shared_prefixes_change_no_number(data, seed, tiny_model):
    """Instructions, inputs and candidates that share whatever they share, against each alone."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(data.draw(st.integers(1, 2))):
        instruction = rng.integers(0, 352, data.draw(st.integers(1, 60)))
        for _ in range(data.draw(st.integers(1, 3))):
            prompt = [*instruction, *rng.integers(0, 352, data.draw(st.integers(0, 30)))]
            stem = rng.integers(0, 352, 3)
            for _ in range(data.draw(st.integers(1, 4))):
                own = rng.integers(0, 352, data.draw(st.integers(1, 6)))
                ids = [*prompt, *stem[: data.draw(st.integers(0, 3))], *own]
                drawn.append((ids, len(prompt)))
    # Made when all is drawn: type checks use the same source of chance.
    requests = [request(ids, [(start, len(ids))]) for ids, start in drawn]
    work = Work()
    together = list(score_requests(tiny_model, requests, work=work))
    assert work.requested == sum(len(r.ids) - 1 for r in requests)
    prefixes = {tuple(ids[:n]) for ids, _ in drawn for n in range(1, len(ids))}
    assert work.distinct == len(prefixes) <= work.useful <= work.requested
    for result in together:
        (alone,) = score_requests(tiny_model, [result.request])
        np.testing.assert_allclose(result.token_log_probs, alone.token_log_probs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(result.entropy, alone.entropy, rtol=0, atol=1e-4)


@st.composite
def forests(draw):
    """Sequences that share prefixes, as (parent, length) of each piece, parents first."""
    pieces = [(-1, draw(st.integers(1, 20)))]
    for index in range(draw(st.integers(1, 5))):
        pieces.append((draw(st.integers(-1, index)), draw(st.integers(1, 15))))
    return pieces


@settings(max_examples=25)
@given(pieces=forests(), seed=st.integers(0, 9))
def test_law_2_a_tree_of_shared_prefixes_equals_the_sequences_one_by_one(pieces, seed, tiny_model):
    width = 128
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 352, length) for _, length in pieces]
    tokens, positions, ends, sources, targets = np.zeros((5, 1, width), np.int32)
    before = {-1: np.zeros(0, int)}  # piece -> ids from the root through it
    last = {-1: -1}  # piece -> index of its last token
    owner = []
    at = 0

    def place(index):
        nonlocal at
        parent, length = pieces[index]
        start, depth = at, len(before[parent])
        for i, token in enumerate(texts[index]):
            tokens[0, at], positions[0, at] = token, depth + i
            if depth + i > 0:
                sources[0, len(owner)] = last[parent] if i == 0 else at - 1
                targets[0, len(owner)] = token
                owner.append((index, depth + i))
            at += 1
        before[index] = np.concatenate([before[parent], texts[index]])
        last[index] = at - 1
        for child in range(index + 1, len(pieces)):
            if pieces[child][0] == index:
                place(child)
        ends[0, start : start + length] = at

    for index, (parent, _) in enumerate(pieces):
        if parent == -1:
            place(index)
    batch = Batch(
        **{
            name: jnp.asarray(value)
            for name, value in {
                "tokens": tokens,
                "positions": positions,
                "ends": ends,
                "sources": sources,
                "targets": targets,
                "num_scored": np.array([len(owner)], np.int32),
            }.items()
        },
        tile=8,
    )
    shared = np.asarray(jitted_token_log_probs(*halves(tiny_model), batch))[0]
    paths = {index: before[index] for index in range(len(pieces)) if len(before[index]) > 1}
    alone = dict(
        zip(
            paths,
            score_requests(tiny_model, [request(ids) for ids in paths.values()]),
            strict=True,
        )
    )
    for entry, (index, depth) in enumerate(owner):
        assert shared[entry] == pytest.approx(alone[index].token_log_probs[depth - 1], abs=1e-5)


jitted_token_log_probs = jax.jit(token_log_probs)


# --- 3. The same function everywhere --------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(random_model):
    """A model, eight rows of data, and log Pr of each row with the gradient of the mean, by jit."""
    model = random_model(seed=11)
    rng = np.random.default_rng(5)
    lengths = np.array([20, 2, 11, 20, 7, 15, 3, 18], np.int32)
    data = (
        jnp.asarray(rng.integers(0, 61, (8, 20)), jnp.int32),
        jnp.asarray(np.maximum(1, lengths // 4)),
        jnp.asarray(lengths),
    )

    def log_probs(params, tokens, prompts, lengths):
        batch = batch_from_lengths(tokens, prompts, lengths, tile=8)
        return sequence_log_probs(model.graphdef, params, batch)

    def mean(params, *data):
        return log_probs(params, *data).mean()

    values = jax.jit(log_probs)(model.params, *data)
    gradient = jax.jit(jax.grad(mean))(model.params, *data)
    assert values.shape == (8,) and (values < -1).all()
    return model.params, data, log_probs, mean, values, gradient


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def per_row(data):
    return tuple(x[:, None] for x in data)


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_law_3_jit_equals_rows_by_numpy(everywhere, decode_by_hand, random_model):
    model = random_model(seed=11)
    _, (tokens, prompts, lengths), _, _, values, _ = everywhere
    for row in range(8):
        ids = np.asarray(tokens[row, : lengths[row]])
        logs = decode_by_hand(model, ids)[np.arange(len(ids) - 1), ids[1:]]
        assert values[row] == pytest.approx(logs[prompts[row] - 1 :].sum(), abs=1e-4)


def test_law_3_no_jit(everywhere):
    params, data, log_probs, _, values, _ = everywhere
    assert_same(log_probs(params, *data), values)


@pytest.mark.slow
def test_law_3_vmap(everywhere):
    params, data, log_probs, mean, values, gradient = everywhere
    mapped = jax.jit(jax.vmap(log_probs, in_axes=(None, 0, 0, 0)))
    assert_same(mapped(params, *per_row(data))[:, 0], values)
    slopes = jax.jit(jax.vmap(jax.grad(mean), in_axes=(None, 0, 0, 0)))(params, *per_row(data))
    assert_same(jax.tree.map(lambda x: x.mean(0), slopes), gradient)


@pytest.mark.slow
def test_law_3_grad_of_a_vmap(everywhere):
    params, data, log_probs, _, _, gradient = everywhere
    mapped = jax.vmap(log_probs, in_axes=(None, 0, 0, 0))
    slopes = jax.jit(jax.grad(lambda params: mapped(params, *per_row(data)).mean()))(params)
    assert_same(slopes, gradient)


def test_law_3_pmap(everywhere):
    params, data, log_probs, mean, values, gradient = everywhere
    mapped = jax.pmap(log_probs, in_axes=(None, 0, 0, 0))
    assert_same(mapped(params, *per_row(data))[:, 0], values)

    def step(params, *data):
        return jax.lax.pmean(jax.grad(mean)(params, *data), "data")

    slopes = jax.pmap(step, axis_name="data", in_axes=(None, 0, 0, 0))(params, *per_row(data))
    assert_same(jax.tree.map(lambda x: x[0], slopes), gradient)
    assert_same(jax.tree.map(lambda x: x[7], slopes), gradient)


def test_law_3_shard_map(everywhere, mesh):
    params, data, log_probs, _, values, gradient = everywhere
    specs = (P(), P("data"), P("data"), P("data"))
    mapped = jax.shard_map(log_probs, mesh=mesh, in_specs=specs, out_specs=P("data"))
    assert_same(jax.jit(mapped)(params, *data), values)
    slopes = jax.jit(jax.grad(lambda params: mapped(params, *data).mean()))(params)
    assert_same(slopes, gradient)


def test_law_3_grad_inside_shard_map(everywhere, mesh):
    params, data, _, mean, _, gradient = everywhere
    specs = (P(), P("data"), P("data"), P("data"))

    def step(params, *data):
        varying = jax.lax.pcast(params, "data", to="varying")
        return jax.lax.pmean(jax.grad(mean)(varying, *data), "data")

    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
    assert_same(jax.jit(mapped)(params, *data), gradient)


def test_law_3_grad_inside_shard_map_of_parameters_that_all_share(everywhere, mesh):
    params, data, _, mean, _, gradient = everywhere
    specs = (P(), P("data"), P("data"), P("data"))

    def step(params, *data):
        # JAX adds up the gradient of what all devices share
        return jax.tree.map(lambda x: x / 8, jax.grad(mean)(params, *data))

    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P())
    assert_same(jax.jit(mapped)(params, *data), gradient)


def test_law_3_sharded_jit(everywhere, mesh):
    params, data, log_probs, mean, values, gradient = everywhere
    rows = NamedSharding(mesh, P("data"))
    data = tuple(jax.device_put(x, rows) for x in data)
    params = jax.device_put(params, NamedSharding(mesh, P()))
    found = jax.jit(log_probs, out_shardings=rows)(params, *data)
    assert len(found.sharding.device_set) == 8
    assert_same(found, values)
    assert_same(jax.jit(jax.grad(mean))(params, *data), gradient)


# --- 4. Normalization -----------------------------------------------------------------------


def test_law_4_probabilities_over_the_vocabulary_sum_to_one(tiny_model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 352, (2, 12)))
    batch = batch_from_lengths(tokens, jnp.array([1, 1]), jnp.array([12, 9]))
    logs = next_token_log_probs(*halves(tiny_model), batch, jnp.arange(9))
    assert logs.shape == (2, 9, 352)
    np.testing.assert_allclose(np.exp(np.asarray(logs, np.float64)).sum(-1), 1, atol=1e-5)


def test_law_4_every_next_token_of_a_shared_prompt_together_has_probability_one(tiny_model):
    """Two prompts with a stem in common, each followed by every token of the vocabulary."""
    stem = np.random.default_rng(3).integers(0, 352, 40).tolist()
    prompts = [[*stem, 7, 8], [*stem, 9]]
    requests = [request([*p, v], [(len(p), len(p) + 1)]) for p in prompts for v in range(352)]
    work = Work()
    logs = np.array([s.log_prob for s in score_requests(tiny_model, requests, work=work)])
    assert work.useful == work.distinct == 40 + 2 + 1
    np.testing.assert_allclose(np.exp(logs.reshape(2, 352)).sum(-1), 1, atol=1e-5)


def test_law_4_pitfall_9_the_scored_number_is_that_of_the_next_token(tiny_model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 352, (1, 12)))
    batch = batch_from_lengths(tokens, jnp.array([1]), jnp.array([12]))
    logs = next_token_log_probs(*halves(tiny_model), batch, jnp.arange(11))[0]
    scored = jitted_token_log_probs(*halves(tiny_model), batch)[0, :11]
    np.testing.assert_allclose(scored, logs[jnp.arange(11), tokens[0, 1:]], atol=1e-5)
    assert jnp.abs(scored - logs[jnp.arange(11), tokens[0, :11]]).min() > 1e-3


def test_law_4_token_log_probs_sum_to_log_prob(tiny_model):
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 352, (3, 12)))
    batch = batch_from_lengths(tokens, jnp.array([1, 5, 11]), jnp.array([12, 12, 12]))
    each = jitted_token_log_probs(*halves(tiny_model), batch)
    total = jax.jit(sequence_log_probs)(*halves(tiny_model), batch)
    np.testing.assert_allclose(total, np.asarray(each, np.float64).sum(-1), rtol=1e-6)
    assert (each != 0).sum(-1).tolist() == [11, 7, 1]


@pytest.fixture(scope="module")
def bigram(random_model):
    """A decoder whose next-token distribution is a table: log p(v | u) = table[u, v].

    Every token is a unit vector, attention and MLP write nothing, the final norm undoes the
    root mean square, and the head holds the table.
    """
    vocab = 12
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(vocab, 0.3), vocab) + 1e-4
    table = np.log(table / table.sum(-1, keepdims=True))
    model = random_model(vocab_size=vocab, hidden_size=vocab, num_heads=2, num_kv_heads=1)
    arrays = nnx.to_pure_dict(jax.tree.map(lambda x: x, model.params))
    rms = np.sqrt(1 / vocab + model.config.norm_eps)
    arrays["embed"]["embedding"] = jnp.eye(vocab)
    arrays["final_norm"]["scale"] = jnp.full(vocab, rms, jnp.float32)
    arrays["lm_head"]["kernel"] = jnp.asarray(table.T, jnp.float32)
    layers = arrays["layers"]
    for block, name in (("attention", "o"), ("mlp", "down")):
        layers[block][name]["kernel"] = jnp.zeros_like(layers[block][name]["kernel"])
    _, abstract = abstract_decoder(model.config, "float32")
    model = dataclasses.replace(model, params=fill(abstract, arrays))
    return model, table


def test_law_4_a_hand_made_bigram_model_is_scored_exactly(bigram):
    model, table = bigram
    rng = np.random.default_rng(1)
    requests, expected = [], []
    for length in (2, 3, 10, 70, 150):
        ids = rng.integers(0, 12, length)
        start = int(rng.integers(1, length))
        requests.append(request(ids, [(start, length)]))
        expected.append(table[ids[start - 1 : -1], ids[start:]])
    for result, wanted in zip(score_requests(model, requests, top_k=3), expected, strict=True):
        np.testing.assert_allclose(result.token_log_probs, wanted, rtol=0, atol=1e-5)
        assert result.log_prob == pytest.approx(wanted.sum(), abs=1e-5 * len(wanted))
    # a score shifted by one token would read other cells of the table
    ids, scored = requests[3].ids, expected[3]
    shifted = table[ids[-len(scored) - 2 : -2], ids[-len(scored) - 1 : -1]]
    assert np.abs(shifted - scored).max() > 1


def test_law_4_bigram_entropy_rank_and_alternatives_are_exact(bigram):
    model, table = bigram
    ids = np.random.default_rng(2).integers(0, 12, 30)
    (result,) = score_requests(model, [request(ids)], top_k=12)
    rows = table[ids[:-1]]
    np.testing.assert_allclose(result.entropy, -(np.exp(rows) * rows).sum(-1), atol=1e-5)
    own = rows[np.arange(29), ids[1:]]
    np.testing.assert_array_equal(result.rank, (rows > own[:, None]).sum(-1) + 1)
    np.testing.assert_array_equal(result.greedy, rows.argmax(-1) == ids[1:])
    np.testing.assert_array_equal(result.top_ids, np.argsort(-rows, axis=-1))
    np.testing.assert_allclose(result.top_log_probs, -np.sort(-rows, axis=-1), atol=1e-5)
    np.testing.assert_allclose(np.exp(result.top_log_probs).sum(-1), 1, atol=1e-5)


def test_law_4_all_strings_of_a_bigram_model_have_probability_one_together(bigram):
    """With an end token that stops a string, Pr over all strings up to a length goes to 1."""
    model, table = bigram
    end, start = 0, 1
    ids = [[start, *tail] for tail in np.ndindex(12, 12)]
    two = list(score_requests(model, [request(x) for x in ids]))
    total = sum(np.exp(result.log_prob) for result in two)
    assert total == pytest.approx(1, abs=1e-5)
    stopped = sum(
        np.exp(result.log_prob) for result, x in zip(two, ids, strict=True) if x[1] == end
    )
    assert stopped == pytest.approx(np.exp(table[start, end]), abs=1e-6)


# --- 6. No silent emptiness -----------------------------------------------------------------


@pytest.mark.parametrize("include_eos", [True, False])
@pytest.mark.parametrize("output", ["", ["fine", ""]])
def test_law_6_an_empty_response_is_an_error_that_names_its_row(tiny_model, output, include_eos):
    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions(include_eos=include_eos))
    with pytest.raises(PromptError, match="empty") as caught:
        encoder.encode(Example(id="row-7", instruction="Say it.", output=output), row=6)
    assert caught.value.row == "row-7"


def test_law_6_given_ids_may_not_be_empty_either(tiny_model):
    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions())
    with pytest.raises(PromptError, match="empty") as caught:
        encoder.encode(Example(prompt_ids=[1, 5], output_ids=[]), row=6)
    assert caught.value.row == "row 7"


def test_law_6_every_request_of_the_encoder_has_scored_tokens(tiny_model):
    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions(include_eos=False))
    for context in ("cz", "c", "z", "none"):
        (made,) = encoder.encode(
            Example(instruction="c", input="z", output="y"), row=0, context=context
        )
        assert made.num_tokens >= 1 and made.spans[0][0] >= 1
        (result,) = score_requests(tiny_model, [made])
        assert len(result.token_log_probs) == made.num_tokens and result.log_prob < 0


def test_law_6_a_batch_with_nothing_to_score_says_so(tiny_model):
    lengths = jnp.array([5, 3])
    batch = jax.jit(batch_from_lengths)(jnp.ones((2, 5), int), lengths, lengths)
    scores = jax.jit(token_scores)(*halves(tiny_model), batch)
    assert batch.num_scored.tolist() == [0, 0]
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(scores))
    gradient = jax.jit(jax.grad(lambda p: token_log_probs(tiny_model.graphdef, p, batch).sum()))(
        tiny_model.params
    )
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
