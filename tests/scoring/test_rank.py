"""`rank`: against scores of single responses, for every normalization; answers, errors, order."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jaxtyping import TypeCheckError

from instructjax.data import Example
from instructjax.errors import DataError, InstructJaxError, PromptError, UsageError
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring import rank, rank_rows, read_metadata, score
from instructjax.scoring.chunks import CHUNK_ROWS
from instructjax.scoring.rank_plan import Plan
from instructjax.scoring.ranking import RANK_SCHEMA, RankedExample, Ranking

C, Z, YS = "Add the numbers.", "1 and 2", ("3", "4 and möre", "x <|im_end|>")
EXAMPLE = Example(instruction=C, input=Z, output=YS)


def log_probs(model: Any, **fields: Any) -> np.ndarray:
    """One response at a time."""
    singles = [Example(**fields, output=y) for y in YS]
    return np.array([score(model, one, progress=False).log_prob[0] for one in singles])


@pytest.mark.parametrize(
    "normalization", ["sum", "per_token", "per_character", "per_byte", "pmi", "calibrated"]
)
def test_every_normalization_by_hand(tiny_model: Any, normalization: str) -> None:
    ranking = rank(tiny_model, EXAMPLE, normalization=normalization, progress=False)  # type: ignore
    (found,) = ranking
    own = log_probs(tiny_model, instruction=C, input=Z)
    free = [log_probs(tiny_model, instruction=C, input=z) for z in ("N/A", "[MASK]", "")]
    shares = [np.exp(x) / np.exp(x).sum() for x in (own, *free)]
    expected = {
        "sum": own,
        "per_token": own / found.num_tokens,
        # The end-of-turn token that a person wrote is the one that is scored.
        "per_character": own / [1, 10, 2],
        "per_byte": own / [1, 11, 2],
        "pmi": own - log_probs(tiny_model),
        "calibrated": np.log(shares[0]) - np.log(sum(shares[1:]) / 3),
    }[normalization]
    np.testing.assert_allclose(found.log_prob, own, atol=1e-4)
    np.testing.assert_allclose(found.score, expected, atol=1e-4)
    assert found.best == expected.argmax()
    assert found.posterior.sum() == pytest.approx(1)
    np.testing.assert_allclose(
        found.posterior, np.exp(expected) / np.exp(expected).sum(), atol=1e-4
    )
    assert (found.num_bytes.tolist(), found.num_characters.tolist()) == ([1, 11, 2], [1, 10, 2])
    assert ranking.metadata["normalization"] == normalization
    assert ("premise" in ranking.metadata) == (normalization == "pmi")


def test_premises(tiny_model: Any) -> None:
    own = log_probs(tiny_model, instruction=C, input=Z)
    for premise, fields in (
        ("c", {"instruction": C}),
        ("z", {"input": Z}),
        (Example(instruction="The sum is:"), {"instruction": "The sum is:"}),
    ):
        (found,) = rank(tiny_model, EXAMPLE, normalization="pmi", premise=premise, progress=False)
        np.testing.assert_allclose(found.score, own - log_probs(tiny_model, **fields), atol=1e-4)


def test_the_prompt_as_its_own_premise_is_uniform_and_ties(tiny_model: Any) -> None:
    premise = Example(instruction=C, input=Z)
    (found,) = rank(tiny_model, EXAMPLE, normalization="pmi", premise=premise, progress=False)
    np.testing.assert_allclose(found.posterior, 1 / 3, atol=1e-4)


def test_equal_candidates_tie_and_the_first_wins(tiny_model: Any) -> None:
    example = Example(instruction=C, output=["3", "x", "3", "x"], answer="x")
    ranking = rank(tiny_model, example, progress=False)
    found = ranking[0]
    assert found.tie and ranking.tie.tolist() == [True]
    assert found.ties.sum() == 2 and found.best == int(found.ties.argmax())
    assert found.correct == (found.best == 1)
    assert ranking.metrics.num_ties == 1


def test_the_greedy_candidate(random_model: Any) -> None:
    model = random_model(seed=4)
    prompt = [5, 9, 2]
    ids: list[int] = []
    for _ in range(3):
        example = Example(prompt_ids=[*prompt, *ids], output_ids=[0])
        ids.append(int(score(model, example, top_k=1, progress=False).top_ids[0][0, 0]))
    others = [[1 + ids[0] % 50, *ids[1:]], ids, [*ids[:2], 1 + ids[2] % 50]]
    (found,) = rank(model, Example(prompt_ids=prompt, output_ids=others), progress=False)
    assert found.greedy.tolist() == [False, True, False]


def test_answers_by_index_by_text_and_unknown(tiny_model: Any) -> None:
    examples = [dataclasses.replace(EXAMPLE, answer=a) for a in (2, "3", None, "1")]
    ranking = rank(tiny_model, examples, progress=False)
    assert [one.answer for one in ranking] == [2, 0, None, 1]
    assert ranking.metrics.num_answered == 3
    hits = [one.best == one.answer for one in ranking if one.answer is not None]
    assert ranking.metrics.accuracy == pytest.approx(np.mean(hits))
    given = rank(tiny_model, [EXAMPLE] * 4, answers=[2, "3", None, 1], progress=False)
    assert given.metrics == ranking.metrics
    assert ranking.correct[2] is None
    # A text of digits that is a candidate is that candidate, not an index.
    digits = Example(instruction=C, output=["1", "0"])
    assert rank(tiny_model, digits, answers=["0"], progress=False)[0].answer == 1


@pytest.mark.parametrize(
    ("example", "options", "error", "words"),
    [
        (Example(instruction=C, output="3"), {}, DataError, "row 2: there is one candidate only"),
        (Example(instruction=C), {}, DataError, "row 2: there is no response"),
        (dataclasses.replace(EXAMPLE, answer="5"), {}, DataError, "row 2: the answer '5' is none"),
        (dataclasses.replace(EXAMPLE, answer=3), {}, DataError, "row 2: the answer 3 is none"),
        (dataclasses.replace(EXAMPLE, answer=-1, id="q"), {}, DataError, "q: the answer -1"),
        (Example(instruction=C, output=["a", ""]), {}, PromptError, "row 2: response 2 of 2"),
        (
            Example(instruction=C, output=YS),
            {"normalization": "calibrated"},
            DataError,
            "row 2: there is no input",
        ),
        (
            Example(instruction=C, output=YS),
            {"normalization": "pmi", "premise": "c"},
            DataError,
            "row 2: the premise 'c' is the prompt itself",
        ),
        (
            Example(prompt_ids=[1, 5], output_ids=[[3], [4]]),
            {"normalization": "pmi"},
            DataError,
            "row 2: the premise",
        ),
        (
            Example(prompt_ids=[1, 5], output_ids=[[4], [2]]),
            {"normalization": "per_byte"},
            DataError,
            "row 2: candidate 2 has no text",
        ),
        ({"instruction": C}, {}, UsageError, "row 2 is of type dict"),
    ],
)
def test_errors_name_the_row(
    tiny_model: Any, example: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    assert 2 in tiny_model.tokenizer.eos_ids
    with pytest.raises(error) as caught:
        list(
            rank_rows(
                tiny_model,
                iter([EXAMPLE, example]),
                encoder=PromptEncoder(tiny_model.tokenizer),
                **options,
            )
        )
    assert caught.match(words)


def test_an_error_handler_leaves_the_rest_in_order(tiny_model: Any) -> None:
    # Errors of three kinds: seen before scoring, when encoding, and when encoding what takes the
    # place of z ("7 7 7..." is too long); more prompts than one chunk of the stream holds.
    count = CHUNK_ROWS // 2 + 20
    long = "7 " * 60
    broken = {3: "one", 11: "empty", 12: "z", count - 2: "one", count - 1: "empty"}
    examples = []
    for i in range(count):
        kind = broken.get(i)
        output = {"one": "a", "empty": ["a", ""]}.get(str(kind), ["a", f"{i % 5}"])
        # What stands for z is short, but not beside this instruction.
        instruction = C + long if kind == "z" else C
        examples.append(
            Example(instruction=instruction, input="7", output=output, id=f"e{i}", answer=i % 2)
        )
    left_out: list[str | None] = []

    def on_error(example: Example, error: InstructJaxError) -> None:
        assert error.row == example.id
        left_out.append(example.id)

    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions(max_length=150))
    done: list[int] = []
    found = list(
        rank_rows(
            tiny_model,
            (e for e in examples),
            encoder=encoder,
            normalization="calibrated",
            content_free=["N/A", "x " * 40],
            on_error=on_error,
            on_progress=done.append,
        )
    )
    assert left_out == [f"e{i}" for i in sorted(broken)]
    assert [one.id for one in found] == [f"e{i}" for i in range(count) if i not in broken]
    assert [one.answer for one in found] == [i % 2 for i in range(count) if i not in broken]
    assert done == sorted(done) and done[-1] <= count
    # Each is as it is alone.
    for i in (0, len(found) - 1):
        index = int(found[i].id[1:])
        (alone,) = rank_rows(
            tiny_model,
            [examples[index]],
            encoder=encoder,
            normalization="calibrated",
            content_free=["N/A", "x " * 40],
        )
        np.testing.assert_allclose(alone.score, found[i].score, atol=1e-4)


def test_a_recurring_premise_is_scored_once() -> None:
    plan = Plan()
    premise = Example(instruction="The answer is:", output=("a", "b"))
    examples = [Example(instruction=f"{i}", output=("a", "b"), id=f"{i}") for i in range(3)]
    issued = [plan.take(one, None, [dataclasses.replace(premise, id=one.id)]) for one in examples]
    assert [len(batch) for batch in issued] == [2, 1, 1]
    other = dataclasses.replace(premise, output=("a", "c"))
    assert len(plan.take(examples[0], None, [other])) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "mean"},
        {"premise": "cz"},
        {"premise": "The answer is:"},
        {"content_free": ()},
        {"content_free": "N/A"},
        {"answers": [1, 2]},
        {"answers": []},
        {"layout": "chat"},
    ],
)
def test_unknown_options(tiny_model: Any, options: dict[str, Any]) -> None:
    with pytest.raises((UsageError, TypeCheckError)):
        rank(tiny_model, EXAMPLE, progress=False, **options)


def make_ranked(scores: list[float], *, answer: int | None = None) -> RankedExample:
    k = len(scores)
    return RankedExample(
        id="q",
        log_prob=np.array(scores),
        num_tokens=np.full(k, 2),
        num_bytes=np.full(k, 3),
        num_characters=np.full(k, 3),
        greedy=np.zeros(k, np.bool_),
        score=np.array(scores),
        answer=answer,
        status=("ok",) * k,
    )


def test_the_table(tmp_path: Any) -> None:
    one = make_ranked([math.log(0.2), math.log(0.6)], answer=0)
    two = make_ranked([-1.0, -1.0])
    ranking = Ranking(examples=(one, two), metadata={"model": "tiny"})
    table = ranking.to_arrow()
    assert table.schema.names == RANK_SCHEMA.names
    rows = table.to_pylist()
    assert [row["posterior"] for row in rows] == pytest.approx([0.25, 0.75, 0.5, 0.5])
    assert [row["rank"] for row in rows] == [2, 1, 1, 2]
    assert [row["is_best"] for row in rows] == [False, True, True, False]
    assert [row["tie"] for row in rows] == [False, False, True, True]
    assert [row["correct"] for row in rows] == [True, False, None, None]
    ranking.save(tmp_path / "r.parquet")
    again = pq.ParquetFile(tmp_path / "r.parquet").read()
    assert again.equals(table) and read_metadata(again) == {"model": "tiny"}
    for name in ("r.csv", "r.jsonl"):
        ranking.save(tmp_path / name)
        assert len((tmp_path / name).read_text().splitlines()) == 4 + name.endswith("csv")
    assert ranking.to_pandas().attrs == {"model": "tiny"}
    text = repr(ranking)
    assert text.startswith("Ranking(2 examples, tiny), accuracy 0.000") and "tie" in text
    assert "correct=False" in repr(one)


def test_where_the_model_gave_no_number() -> None:
    one = make_ranked([math.nan, -1.0, -math.inf])
    assert one.best == 1 and not one.tie
    assert np.isnan(one.posterior).all()
