"""Ways in which scoring tools are known to be silently wrong, beyond those in the law tests."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import instructjax as ij
from instructjax.batching.batch import batch_from_lengths
from instructjax.models.model import load_model
from instructjax.prompts.request import Request
from instructjax.scoring.api import make_encoder
from instructjax.scoring.engine import Work, score_requests
from instructjax.scoring.log_probs import next_token_log_probs
from instructjax.scoring.metadata import describe_run

FIXTURES = Path(__file__).parents[1] / "fixtures"


def by_full_softmax(model, ids, start, stop):
    """log p of ids[start:stop], read off the distributions over the whole vocabulary."""
    batch = batch_from_lengths(jnp.asarray(ids[None]), jnp.array([1]), jnp.array([len(ids)]))
    positions = jnp.arange(start - 1, stop - 1)
    logs = next_token_log_probs(model.graphdef, model.params, batch, positions)[0]
    return np.asarray(logs)[np.arange(stop - start), ids[start:stop]]


def test_pitfall_same_ids_with_different_split_points_in_one_run(tiny_model):
    """A cache keyed by the ids alone returns one request's log-probs for the other."""
    ids = np.array([1, 40, 41, 42, 43, 44], np.int32)
    made = [Request(ids=ids, spans=((k, 6),), num_bytes=1) for k in (2, 5, 3)]
    for result, start in zip(score_requests(tiny_model, made), (2, 5, 3), strict=True):
        expected = by_full_softmax(tiny_model, ids, start, 6)
        np.testing.assert_allclose(result.token_log_probs, expected, atol=1e-5)


def test_pitfall_18_as_many_log_probs_as_tokens_of_the_response(tiny_model):
    outputs = ["a", "the sun", "a much longer response, with é and 漢字"]
    scores = ij.score(tiny_model, ij.Example(instruction="say", output=outputs), progress=False)
    for k, y in enumerate(outputs):
        assert len(scores.token_log_probs[k]) == len(scores.token_ids[k]) == scores.num_tokens[k]
        ids = scores.token_ids[k].tolist()
        assert tiny_model.tokenizer.decode(ids[:-1]) == y
        assert ids[-1] == tiny_model.tokenizer.eos_id


def test_pitfall_19_metadata_tells_models_and_prompts_apart(tiny_model):
    other = load_model(FIXTURES / "llama-untied")
    half = load_model(FIXTURES / "llama-tied", dtype="bfloat16")

    def describe(model, **options):
        return describe_run(model, make_encoder(model, **options), ("cz",))

    base = describe(tiny_model)
    different = [
        describe(other, layout="plain"),
        describe(half),
        describe(tiny_model, layout="raw"),
    ]
    assert all(found != base for found in different)
    assert tiny_model.fingerprint != other.fingerprint
    assert describe(load_model(FIXTURES / "llama-tied")) == base
    # 23: float32 matmuls are rounded to bfloat16 on some platforms; the table says which it was
    assert base["matmul_precision"] != describe(half)["matmul_precision"]


def test_pitfall_20_bits_per_byte_counts_bytes_not_characters(tiny_model):
    scores = ij.score(tiny_model, ij.Example(instruction="say", output="é漢"), progress=False)
    assert scores.num_bytes[0] == 5
    expected = -scores.log_prob[0] / math.log(2) / 5
    assert scores.bits_per_byte[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_compiled_programs_are_kept_between_processes(tmp_path):
    code = f"""
import instructjax as ij
model = ij.load_model({str(FIXTURES / "llama-tied")!r})
ij.score(model, ij.Example(instruction="a", output="b"), progress=False)
"""
    environment = {**os.environ, "INSTRUCTJAX_CACHE": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
        folder = tmp_path / "programs"
        kept.append({p.name for p in folder.iterdir() if p.name.endswith("-cache")})
    assert any("token_scores" in name for name in kept[0])
    assert kept[1] == kept[0]


@pytest.mark.slow
@pytest.mark.registry
def test_law_2_a_long_neighbour_does_not_change_a_short_request_of_a_real_model():
    model = load_model("smollm2-135m-instruct")
    rng = np.random.default_rng(0)
    made = []
    for length in (70, 1500, 60, 300):
        ids = rng.integers(17, model.config.vocab_size, length).astype(np.int32)
        made.append(Request(ids=ids, spans=((length - 8, length),), num_bytes=1))
    for result in list(score_requests(model, made)):
        (alone,) = score_requests(model, [result.request])
        gap = np.abs(result.token_log_probs - alone.token_log_probs)
        assert gap.max() <= 1e-5


@pytest.mark.registry
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_law_2_sharing_a_prompt_changes_nothing_of_a_real_model(dtype):
    model = load_model("smollm2-135m-instruct", dtype=dtype)
    rng = np.random.default_rng(1)
    prompt = rng.integers(17, model.config.vocab_size, 90)
    made = []
    for length in (3, 9, 40):
        ids = np.concatenate([prompt, rng.integers(17, model.config.vocab_size, length)])
        made.append(Request(ids=ids.astype(np.int32), spans=((90, 90 + length),), num_bytes=1))
    work = Work()
    shared = list(score_requests(model, made, work=work))
    assert work.useful == work.distinct == 90 + 2 + 8 + 39
    for result in shared:
        (alone,) = score_requests(model, [result.request])
        gap = np.abs(result.token_log_probs - alone.token_log_probs)
        assert gap.max() <= 1e-5


def test_a_model_and_a_tokenizer_have_short_displays(tiny_model):
    assert len(repr(tiny_model)) < 200 and "float32" in repr(tiny_model)
    assert len(repr(tiny_model.tokenizer)) < 200


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"output": "x"}, "no instruction and no input"),
        ({"instruction": "a", "output": "x", "prompt_ids": [1], "output_ids": [2]}, "both token"),
    ],
)
def test_examples_that_cannot_be_meant_are_refused(tiny_model, example, message):
    with pytest.raises(ij.InstructJaxError, match=message):
        ij.score(tiny_model, ij.Example(**example), progress=False)


def test_given_ids_may_be_arrays(tiny_model):
    one = ij.Example(prompt_ids=[1, 5], output_ids=np.array([[4, 5], [6, 7]]))
    same = ij.Example(prompt_ids=[1, 5], output_ids=[[4, 5], [6, 7]])
    a, b = (ij.score(tiny_model, x, progress=False) for x in (one, same))
    np.testing.assert_array_equal(a.log_prob, b.log_prob)


def test_history_may_be_dicts_or_pairs(tiny_model):
    turns = [("user", "u"), ("assistant", "v")]
    given = [
        (ij.Message(role="user", content="u"), ij.Message(role="assistant", content="v")),
        [{"role": r, "content": c} for r, c in turns],
        turns,
    ]
    made = [ij.Example(instruction="a", history=h, output="b") for h in given]
    assert made[0] == made[1] == made[2]
    with pytest.raises(ij.DataError, match="history"):
        ij.Example(instruction="a", history=[{"role": "robot", "content": "u"}], output="b")
