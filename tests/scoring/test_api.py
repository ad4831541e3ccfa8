"""`score`: PyTorch's numbers, the order of rows, and errors that name the row."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import instructjax
from instructjax.data import Example, Reject
from instructjax.errors import DataError, PromptError, UsageError
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring import engine, score, score_rows
from instructjax.scoring.api import make_encoder

C, Z = "Add the numbers.", "1 and 2"


def test_given_ids_score_as_in_pytorch(tiny_model: Any, golden: Callable[..., Any]) -> None:
    sequences = [s for s in golden("llama-tied") if len(s["ids"]) > 4]
    examples = [Example(prompt_ids=s["ids"][:3], output_ids=s["ids"][3:]) for s in sequences]
    scores = score(tiny_model, examples, progress=False)
    assert len(scores) == len(sequences) > 3
    for row, sequence in zip(scores, sequences, strict=True):
        expected = np.array(sequence["log_probs"][2:])
        np.testing.assert_allclose(row.token_log_probs, expected, atol=1e-4, rtol=0)
        assert row.log_prob == pytest.approx(expected.sum(), abs=1e-4 * len(expected))
        np.testing.assert_allclose(row.scored.entropy, sequence["entropy"][2:], atol=1e-4)


def test_rows_are_by_example_candidate_context(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More requests than the engine takes at once, and of lengths that packing reorders.
    monkeypatch.setattr(engine, "WINDOW", 100)
    count = 100 // 4 + 8
    examples = [
        Example(instruction=C, input="7 " * (i % 9), output=["3", "4 and more"], id=f"e{i}")
        for i in range(count)
    ]
    rows = score_rows(
        tiny_model,
        examples,
        encoder=PromptEncoder(tiny_model.tokenizer),
        contexts=("cz", "none"),
    )
    found = [(row.id, row.candidate, row.context) for row in rows]
    wanted = itertools.product((f"e{i}" for i in range(count)), (0, 1), ("cz", "none"))
    assert found == list(wanted)


def test_one_example_an_iterator_and_none(tiny_model: Any) -> None:
    example = Example(instruction=C, input=Z, output="3")
    one = score(tiny_model, example, progress=False)
    again = score(tiny_model, (e for e in [example]), progress=False)
    assert one.log_prob.tolist() == again.log_prob.tolist()
    assert one.ids == ["row 1"]
    assert len(score(tiny_model, [], progress=False)) == 0


def test_contexts_drop_c_or_z(tiny_model: Any) -> None:
    scores = score(
        tiny_model,
        Example(instruction=C, input=Z, output="3"),
        contexts="cz,c,z,none",
        progress=False,
    )
    by_hand = [Example(instruction=C, input=Z, output="3")]
    by_hand += [Example(instruction=C, output="3"), Example(input=Z, output="3")]
    wanted = [score(tiny_model, e, progress=False).log_prob[0] for e in by_hand]
    np.testing.assert_allclose(scores.log_prob[:3], wanted, atol=1e-5)
    assert len({round(x, 3) for x in scores.log_prob}) == 4


def test_the_end_of_turn_token(tiny_model: Any) -> None:
    example = Example(instruction=C, input=Z, output="3")
    with_end = score(tiny_model, example, progress=False)
    without = score(tiny_model, example, include_eos=False, progress=False)
    assert with_end.num_tokens[0] == without.num_tokens[0] + 1
    assert with_end.num_bytes[0] == without.num_bytes[0] == 1
    assert with_end.tokens[0][-1] == "<|im_end|>"
    assert with_end.log_prob[0] == pytest.approx(
        without.log_prob[0] + with_end.token_log_probs[0][-1], abs=1e-5
    )


def test_top_k_holds_the_likeliest(tiny_model: Any) -> None:
    scores = score(tiny_model, Example(instruction=C, output="a b c"), top_k=352, progress=False)
    everything = scores.top_log_probs[0]
    np.testing.assert_allclose(np.exp(everything).sum(-1), 1, atol=1e-5)
    assert (np.diff(everything, axis=-1) <= 0).all()
    for i, token in enumerate(scores.token_ids[0]):
        place = scores.top_ids[0][i].tolist().index(token)
        assert everything[i, place] == pytest.approx(scores.token_log_probs[0][i], abs=1e-5)
        assert scores.rank[0][i] == place + 1


def test_metadata_says_how_the_number_was_made(tiny_model: Any) -> None:
    scores = score(tiny_model, [], contexts=("c",), layout="plain", progress=False)
    wanted = {
        "model": "llama-tied",
        "model_fingerprint": tiny_model.fingerprint,
        "weights": "F32",
        "dtype": "float32",
        "matmul_precision": "highest",
        "layout": "plain",
        "contexts": "c",
        "boundary": "exact",
        "truncation": "error",
        "max_length": "256",
        "include_eos": "true",
        "instructjax": instructjax.__version__,
    }
    assert wanted.items() <= scores.metadata.items()
    assert {"tokenizer_fingerprint", "template_fingerprint", "bos", "eos", "jax", "device"} <= (
        scores.metadata.keys()
    )


@pytest.mark.parametrize(
    ("example", "error", "words"),
    [
        (Example(instruction=C), DataError, "row 2: there is no response"),
        (Example(instruction=C, output=[], id="q7"), DataError, "q7: there is no response"),
        (Example(instruction=C, output=""), PromptError, "row 2: .*empty"),
        (Example(instruction=C, output=["a", ""]), PromptError, "row 2: response 2 of 2"),
        (Example(instruction="7 " * 300, output="a"), PromptError, "row 2: .*256.*truncation"),
        (Example(prompt_ids=[1], output_ids=[]), PromptError, "row 2: .*empty"),
        (Example(prompt_ids=[1], output_ids=[352]), PromptError, "row 2: .*352"),
        ({"instruction": C}, UsageError, "row 2 is of type dict"),
        (Reject(file="a", row="line 3", reason="no"), UsageError, "row 2 is of type Reject"),
    ],
)
def test_errors_name_the_row(
    tiny_model: Any, example: Any, error: type[Exception], words: str
) -> None:
    good = Example(instruction=C, output="3")
    with pytest.raises(error) as caught:
        list(
            score_rows(
                tiny_model,
                iter([good, example]),
                encoder=PromptEncoder(
                    tiny_model.tokenizer, PromptOptions(max_length=256), vocab_size=352
                ),
            )
        )
    assert caught.match(words)


def test_a_token_without_an_embedding_is_refused(tiny_model: Any) -> None:
    small = dataclasses.replace(
        tiny_model, config=dataclasses.replace(tiny_model.config, vocab_size=10)
    )
    with pytest.raises(PromptError, match="row 1: the text holds token"):
        score(small, Example(instruction=C, output="3"), progress=False)


def test_an_error_handler_leaves_the_rest_in_order(tiny_model: Any) -> None:
    examples = [
        Example(instruction=C, output="" if i in (0, 3, 6) else f"{i}", id=f"e{i}")
        for i in range(7)
    ]
    left_out: list[str | None] = []
    rows = score_rows(
        tiny_model,
        examples,
        encoder=PromptEncoder(tiny_model.tokenizer),
        contexts=("cz", "c"),
        on_error=lambda example, error: left_out.append(example.id),
    )
    assert [row.id for row in rows] == ["e1", "e1", "e2", "e2", "e4", "e4", "e5", "e5"]
    assert left_out == ["e0", "e3", "e6"]


@pytest.mark.parametrize(
    "options",
    [
        {"contexts": "cz,zc"},
        {"contexts": ()},
        {"contexts": ("c", "c")},
        {"layout": "chat"},
        {"boundary": "fuzzy"},
        {"truncation": "right"},
        {"turns": "first"},
        {"max_length": 257},
        {"max_length": 0},
        {"top_k": -1},
        {"top_k": 353},
    ],
)
def test_unknown_options(tiny_model: Any, options: dict[str, Any]) -> None:
    # Where the tests check types at run time, that check comes before ours for literals.
    with pytest.raises((UsageError, TypeCheckError)):
        score(tiny_model, Example(instruction=C, output="3"), progress=False, **options)


def test_truncation_is_flagged(tiny_model: Any) -> None:
    example = Example(instruction=C, input="7 " * 300, output="3")
    scores = score(tiny_model, example, truncation="left", progress=False)
    assert scores.status[0].startswith("truncated=")
    shorter = score(tiny_model, example, truncation="middle", max_length=64, progress=False)
    assert len(shorter[0].scored.request.ids) <= 64


@pytest.mark.parametrize("examples", [None, {"instruction": "Add."}, "Add."])
def test_examples_that_are_none(tiny_model: Any, examples: Any) -> None:
    # Without its check of types, which a user does not have.
    with pytest.raises(UsageError, match=r"examples are of type \w+; give an Example"):
        inspect.unwrap(score)(tiny_model, examples, progress=False)


def test_a_length_that_is_no_number(tiny_model: Any) -> None:
    length: Any = "5"
    with pytest.raises((UsageError, TypeCheckError), match="max_length"):
        inspect.unwrap(make_encoder)(tiny_model, max_length=length)
