"""`rank`: against scores of single responses, for every normalization; answers, errors, order."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from instructjax.data import Example
from instructjax.errors import DataError, InstructJaxError, PromptError, UsageError
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring import Headway, Work, rank, rank_rows, read_metadata, score, score_rows
from instructjax.scoring.ranking import RANK_SCHEMA, RankedExample, Ranking, RankOptions
from instructjax.scoring.rows import parse_contexts
from instructjax.scoring.runs import chunks

C, Z, YS = "Add the numbers.", "1 and 2", ("3", "4 and möre", "x <|im_end|>")
EXAMPLE = Example(instruction=C, input=Z, output=YS)


def log_probs(model: Any, context: str = "cz", **fields: Any) -> np.ndarray:
    """One response at a time."""
    singles = [Example(**fields, output=y) for y in YS]
    found = [score(model, one, contexts=context, progress=False).log_prob[0] for one in singles]
    return np.array(found)


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
        "pmi": own - log_probs(tiny_model, "none", instruction=C, input=Z),
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"premise": "c"}, "premise does not count for the normalization per_byte"),
        ({"content_free": ["zz"]}, "content_free does not count for the normalization per_byte"),
    ],
)
def test_what_would_not_count_is_refused(tiny_model: Any, given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rank(tiny_model, EXAMPLE, normalization="per_byte", progress=False, **given)


def test_premises(tiny_model: Any) -> None:
    own = log_probs(tiny_model, instruction=C, input=Z)
    for premise, fields in (
        ("c", {"instruction": C}),
        ("z", {"input": Z}),
        (Example(instruction="The sum is:"), {"instruction": "The sum is:"}),
    ):
        (found,) = rank(tiny_model, EXAMPLE, normalization="pmi", premise=premise, progress=False)
        np.testing.assert_allclose(found.score, own - log_probs(tiny_model, **fields), atol=1e-4)


def test_ties_and_the_first_wins(random_model: Any) -> None:
    # Ids 5 and 9 have the same row of the output table, so whatever comes before them they are
    # equally likely, and with a tied table whatever follows them is too.
    model = random_model(seed=1, tie_embeddings=True)
    table = model.params["embed"]["embedding"]
    table[...] = table[...].at[9].set(table[5]).at[7].set(0 * table[7])
    example = Example(prompt_ids=[1, 2], output_ids=[[3, 9], [3, 5], [3, 7]])
    (found,) = rank(model, example, answers=[1], progress=False)
    assert found.log_prob[0] == found.log_prob[1] > found.log_prob[2]
    assert found.best == 0 and found.tie and found.ties.tolist() == [True, True, False]
    assert found.posterior[0] == found.posterior[1]
    # A tie goes to the first candidate, so an answer that ties with it from behind is not found.
    assert found.correct is False


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
            Example(instruction=C, output=["a", "b", "a"]),
            {},
            DataError,
            "row 2: candidates 1 and 3 are the same",
        ),
        (
            Example(instruction=C, output=["a", "a<|im_end|>"]),
            {},
            DataError,
            "row 2: candidates 1 and 2 are the same",
        ),
        (
            Example(instruction=C, output=YS),
            {"normalization": "calibrated"},
            DataError,
            "row 2: there is no input",
        ),
        (
            Example(input=Z, output=YS),
            {"normalization": "calibrated"},
            DataError,
            "row 2: the content-free input '' leaves no prompt; give `content_free`",
        ),
        (
            Example(instruction=C, output=YS),
            {"normalization": "pmi", "premise": "c"},
            DataError,
            "row 2: the premise 'c' is the prompt itself",
        ),
        (
            Example(instruction=C, output=YS),
            {"normalization": "pmi", "premise": Example(instruction=C)},
            DataError,
            f"row 2: the premise {C!r} is the prompt itself",
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
                options=RankOptions(**options),
            )
        )
    assert caught.match(words)


def test_an_error_handler_leaves_the_rest_in_order(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Errors of three kinds: seen before encoding, when encoding, and when encoding what takes the
    # place of z ("x x x..." is too long); in several chunks of the stream.
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    count = 70
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
    headway = Headway()
    found = list(
        rank_rows(
            tiny_model,
            (e for e in examples),
            encoder=encoder,
            options=RankOptions(normalization="calibrated", content_free=["N/A", "x " * 40]),
            on_error=on_error,
            headway=headway,
            on_progress=lambda: done.append(headway.rows),
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
            options=RankOptions(normalization="calibrated", content_free=["N/A", "x " * 40]),
        )
        np.testing.assert_allclose(alone.score, found[i].score, atol=1e-4)


def test_other_prompts_share_one_tree(tiny_model: Any) -> None:
    # By hand: requests are the same ids up to y, so a tree holds each distinct prefix once.
    encoder = PromptEncoder(tiny_model.tokenizer)
    examples = [Example(instruction=C * 4, input=f"{i}{i}", output=["3", "4"]) for i in range(5)]
    for options in (
        RankOptions(normalization="pmi", premise="c"),
        RankOptions(normalization="pmi", premise=Example(instruction="The answer is:" * 4)),
        RankOptions(normalization="calibrated"),
    ):
        others = {
            "pmi": [options.premise],
            "calibrated": [Example(instruction=C * 4, input=z) for z in options.content_free],
        }[options.normalization]
        prefixes, asked = set(), 0
        for example in examples:
            prompts = [example, *(x if isinstance(x, Example) else example for x in others)]
            for k, prompt in enumerate(prompts):
                context = "cz" if k == 0 or isinstance(others[k - 1], Example) else others[k - 1]
                twin = dataclasses.replace(prompt, output=example.output)
                for request in encoder.encode(twin, row=0, context=context):  # type: ignore
                    size = request.spans[-1][1] - 1
                    prefixes |= {request.ids[: n + 1].tobytes() for n in range(size)}
                    asked += size
        work = Work()
        list(rank_rows(tiny_model, examples, encoder=encoder, options=options, work=work))
        assert work.requested == asked
        # Prefixes of a few tokens are not worth sharing, so that many may be computed twice.
        assert len(prefixes) <= work.distinct <= len(prefixes) + 16 * 5 < asked / 2


def test_contexts_share_one_tree(tiny_model: Any) -> None:
    example = Example(instruction=C * 4, input="1 and 2 " * 4, output=list("abcd"))
    encoder, works = PromptEncoder(tiny_model.tokenizer), {}
    for contexts in ("cz,c,z,none", "cz", "c", "z", "none"):
        works[contexts] = Work()
        names = parse_contexts(contexts)
        list(
            score_rows(tiny_model, [example], encoder=encoder, contexts=names, work=works[contexts])
        )
    together, *apart = works.values()
    assert together.requested == sum(work.requested for work in apart)
    # c and its prefix of c z are the same ids: at least those tokens are computed once.
    common = len(tiny_model.tokenizer.encode(C * 4))
    assert together.distinct <= sum(work.distinct for work in apart) - common


@given(st.permutations(range(5)))
@settings(max_examples=10)
def test_the_order_of_candidates_does_not_matter(tiny_model: Any, order: list[int]) -> None:
    outputs = ["3", "4", "three", "thirty", "1 and 2"]
    for normalization in ("sum", "per_byte", "calibrated"):
        (whole,) = rank(
            tiny_model,
            Example(instruction=C, input=Z, output=outputs, answer=2),
            normalization=normalization,
            progress=False,
        )
        moved = [outputs[k] for k in order]
        (found,) = rank(
            tiny_model,
            Example(instruction=C, input=Z, output=moved, answer=order.index(2)),
            normalization=normalization,
            progress=False,
        )
        np.testing.assert_allclose(found.score, whole.score[order], atol=1e-5)
        np.testing.assert_allclose(found.posterior, whole.posterior[order], atol=1e-5)
        assert order[found.best] == whole.best and found.correct == whole.correct


def test_an_example_twice_is_ranked_alike(tiny_model: Any) -> None:
    other = Example(instruction=C, input="7 and 8", output=["15", "16"])
    first, _, second = rank(
        tiny_model, [EXAMPLE, other, EXAMPLE], normalization="pmi", progress=False
    )
    np.testing.assert_array_equal(first.score, second.score)
    np.testing.assert_array_equal(first.posterior, second.posterior)


def test_what_was_cut_from_a_prompt_is_in_the_status(tiny_model: Any) -> None:
    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions(max_length=60, truncation="left"))
    premise = Example(instruction="It is so that " * 20)
    example = Example(instruction="Add.", output=["3", "4"])
    (found,) = rank_rows(
        tiny_model,
        [example],
        encoder=encoder,
        options=RankOptions(normalization="pmi", premise=premise),
    )
    assert all(status.startswith("truncated=") for status in found.status)


def test_earlier_turns_are_no_candidates(tiny_model: Any) -> None:
    encoder = PromptEncoder(tiny_model.tokenizer, PromptOptions(turns="all"))
    with pytest.raises(UsageError, match="all turns"):
        next(rank_rows(tiny_model, [EXAMPLE], encoder=encoder))


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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (1.5, "is of type float"),
        (1.0, "is of type float"),
        (math.nan, "is of type float"),
        (True, "is of type bool"),
        (np.True_, "is of type bool"),
        ([1], "is of type list"),
        pytest.param("1" * 5000, "the answer '111", id="digits"),
        pytest.param(10**5000, "of more than 80 digits is none", id="greatest"),
        pytest.param(-(10**5000), "of more than 80 digits is none", id="least"),
        (np.int64(3), "the answer 3 is none of the 3 candidates"),
    ],
)
def test_an_answer_that_is_none_leaves_the_run_whole(
    tiny_model: Any, answer: Any, words: str
) -> None:
    broken = dataclasses.replace(EXAMPLE)
    object.__setattr__(broken, "answer", answer)  # around the check of types that users do not have
    failures: list[InstructJaxError] = []
    (found,) = rank_rows(
        tiny_model,
        [broken, dataclasses.replace(EXAMPLE, answer=2)],
        encoder=PromptEncoder(tiny_model.tokenizer),
        on_error=lambda example, error: failures.append(error),
    )
    (error,) = failures
    assert isinstance(error, DataError) and error.row == "row 1" and words in error.message
    assert found.answer == 2


def test_an_answer_may_be_a_numpy_integer(tiny_model: Any) -> None:
    example = dataclasses.replace(EXAMPLE)
    object.__setattr__(example, "answer", np.int64(1))
    (found,) = rank(tiny_model, example, progress=False)
    assert type(found.answer) is int and found.answer == 1


@pytest.mark.parametrize(
    ("examples", "options", "words"),
    [
        (None, {}, "examples are of type NoneType"),
        ({"instruction": C}, {}, "examples are of type dict"),
        (EXAMPLE, {"answers": 3}, "answers are of type int"),
        (EXAMPLE, {"answers": "0"}, "answers are of type str"),
    ],
)
def test_wrong_calls_without_a_check_of_types(
    tiny_model: Any, examples: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        inspect.unwrap(rank)(tiny_model, examples, progress=False, **options)


@pytest.mark.parametrize(
    "options", [{"premise": None}, {"premise": ["c"]}, {"content_free": 3}, {"content_free": [3]}]
)
def test_wrong_options_without_a_check_of_types(options: dict[str, Any]) -> None:
    options = {"normalization": "sum", "premise": "none", "content_free": ("",)} | options
    made = object.__new__(RankOptions)
    for name, value in options.items():
        object.__setattr__(made, name, value)
    with pytest.raises(UsageError, match=r"there is no premise|content_free is"):
        inspect.unwrap(RankOptions.__post_init__)(made)


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


def test_a_part_of_a_ranking_is_one() -> None:
    ranked = [make_ranked([0.0, -float(n)], answer=n % 2) for n in range(1, 5)]
    ranking = Ranking(examples=tuple(ranked), metadata={"model": "tiny"})
    for index, expected in (
        (slice(0, 2), ranked[:2]),
        ([3, -4], [ranked[3], ranked[0]]),
        (ranking.best == np.array([0, 1, 0, 1]), [ranked[0], ranked[2]]),
    ):
        part = ranking[index]
        assert isinstance(part, Ranking) and part.metadata == ranking.metadata
        assert list(part) == expected
    assert ranking[1:2].metrics.accuracy == 1.0 and ranking.metrics.accuracy == 0.5
    assert ranking[np.int64(-1)] is ranked[3]


def test_where_the_model_gave_no_number() -> None:
    one = make_ranked([math.nan, -1.0, -math.inf])
    assert one.best == 1 and not one.tie
    assert np.isnan(one.posterior).all()
