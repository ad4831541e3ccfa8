"""`Scores`: arrays, slices, tables and displays of hand-made and of golden numbers."""

from __future__ import annotations

import builtins
import html.parser
import math
import re
from typing import Any

import numpy as np
import pytest

from instructjax.data import Example
from instructjax.errors import UsageError
from instructjax.prompts import Request
from instructjax.scoring import ScoredRequest, ScoredRow, Scores, score


def make_row(
    log_probs: list[float],
    *,
    num_bytes: int = 5,
    greedy: list[bool] | None = None,
    flags: tuple[str, ...] = (),
    name: str = "a",
    candidate: int = 0,
    context: str = "cz",
    ids: list[int] | None = None,
) -> ScoredRow:
    n = len(log_probs)
    y = ids or list(range(20, 20 + n))
    request = Request(
        ids=np.array([1, 7, *y], np.int32),
        spans=((2, 2 + n),),
        num_bytes=num_bytes,
        candidate=candidate,
        context=context,
        flags=flags,
    )
    scored = ScoredRequest(
        request=request,
        token_log_probs=np.array(log_probs, np.float32),
        greedy=np.array(greedy or [False] * n),
        entropy=np.full(n, 0.5, np.float32),
        rank=np.arange(2, 2 + n, dtype=np.int32),
        top_ids=np.zeros((n, 0), np.int32),
        top_log_probs=np.zeros((n, 0), np.float32),
    )
    return ScoredRow(id=name, instruction_id="i", input_id=None, task="t", scored=scored)


@pytest.fixture
def scores(tiny_model: Any) -> Scores:
    rows = (
        make_row([-1.0, -0.5, -0.25], greedy=[True, True, True]),
        make_row([-2.0], num_bytes=0, candidate=1, flags=("truncated=3", "spans_join")),
        make_row([-4.0, -4.0], num_bytes=8, name="b", greedy=[True, False], context="none"),
    )
    metadata = {"model": "tiny", "layout": "user"}
    return Scores(rows=rows, tokenizer=tiny_model.tokenizer, metadata=metadata)


def test_numbers_a_row_in_closed_form(scores: Scores) -> None:
    assert scores.log_prob.tolist() == [-1.75, -2.0, -8.0]
    assert scores.log_prob.dtype == np.float64
    assert scores.num_tokens.tolist() == [3, 1, 2]
    assert scores.num_bytes.tolist() == [5, 0, 8]
    np.testing.assert_allclose(scores.log_prob_per_token, [-1.75 / 3, -2.0, -4.0])
    np.testing.assert_allclose(
        scores.bits_per_byte, [1.75 / 5 / math.log(2), math.nan, 1 / math.log(2)]
    )
    assert scores.greedy.tolist() == [True, False, False]
    assert scores.status == ["ok", "truncated=3,spans_join", "ok"]
    assert scores.ids == ["a", "a", "b"]
    assert scores.candidate.tolist() == [0, 1, 0]
    assert scores.context == ["cz", "cz", "none"]
    assert scores.instruction_id == ["i"] * 3
    assert scores.input_id == [None] * 3
    assert scores.task == ["t"] * 3


def test_numbers_a_token(scores: Scores) -> None:
    assert [x.tolist() for x in scores.token_log_probs] == [[-1, -0.5, -0.25], [-2], [-4, -4]]
    assert all(x.dtype == np.float32 for x in scores.token_log_probs)
    assert [x.tolist() for x in scores.token_ids] == [[20, 21, 22], [20], [20, 21]]
    assert [x.tolist() for x in scores.token_greedy] == [[True] * 3, [False], [True, False]]
    for bits, nats in zip(scores.surprisal_bits, scores.token_log_probs, strict=True):
        assert bits.tolist() == pytest.approx([-math.log2(math.exp(x)) for x in nats])
    assert scores.entropy[0].tolist() == [0.5] * 3
    assert scores.rank[0].tolist() == [2, 3, 4]
    assert [len(x) for x in scores.tokens] == [3, 1, 2]


def test_a_sum_is_in_float64() -> None:
    # In float32 the sum of 2^24 + 1 + 1 + ... stays at 2^24.
    row = make_row([-16777216.0, *[-1.0] * 10])
    assert row.log_prob == -16777226.0


def test_a_number_that_is_none_is_said() -> None:
    assert make_row([-1.0, math.nan]).status == "not_finite"
    assert make_row([-math.inf], flags=("spans_join",)).status == "spans_join,not_finite"


def test_index_slice_mask(scores: Scores) -> None:
    assert scores[1].candidate == 1
    assert scores[-1].id == "b"
    assert scores[1:].log_prob.tolist() == [-2.0, -8.0]
    assert scores[[2, 0]].log_prob.tolist() == [-8.0, -1.75]
    assert scores[scores.log_prob > -3].log_prob.tolist() == [-1.75, -2.0]
    assert scores.select(lambda row: row.context == "none").ids == ["b"]
    assert scores[1:].metadata == scores.metadata
    assert len(scores) == 3 and [row.num_tokens for row in scores] == [3, 1, 2]
    with pytest.raises(IndexError):
        scores[3]


def test_tables(scores: Scores) -> None:
    table = scores.to_arrow()
    assert table.column("bits_per_byte").to_pylist()[1] is None
    assert table.column("token_ids").to_pylist() == [[20, 21, 22], [20], [20, 21]]
    frame = scores.to_pandas()
    assert list(frame["log_prob"]) == [-1.75, -2.0, -8.0]
    assert frame.attrs["model"] == "tiny"


def test_without_pandas(scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match="pip install pandas"):
        scores.to_pandas()


def test_repr(scores: Scores, tiny_model: Any) -> None:
    text = repr(scores)
    assert "3 rows, tiny, user" in text and "truncated=3,spans_join" in text
    assert "-1.750" in text
    assert max(map(len, text.splitlines())) <= 88
    many = Scores(rows=scores.rows * 20, tokenizer=tiny_model.tokenizer)
    assert "… and 50 more" in repr(many)
    assert repr(scores[0]).startswith("ScoredRow(id='a', candidate=0, context='cz'")
    assert repr(Scores(rows=(), tokenizer=tiny_model.tokenizer)) == "Scores(0 rows)"


class _Tags(html.parser.HTMLParser):
    """Which elements there are, and that they are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]
        if tag not in ("br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_escapes_what_a_row_holds(tiny_model: Any) -> None:
    evil = "<script>alert(1)</script> & \"q\" 'r' \x1b[0m"
    example = Example(instruction="x", output=evil, id=f"<b onclick='x'>{evil}")
    shown = score(tiny_model, example, progress=False)._repr_html_()
    tags = _Tags(shown)
    assert not tags.open
    assert tags.seen == {"div", "span", "wbr"}
    assert "<b onclick='x'>" in tags.text
    assert "\x1b" not in shown.split("tokens</div>")[-1]
    assert all(re.fullmatch(r"log-prob .* · probability .* · rank \d+", t) for t in tags.titles)


def test_html_of_many_rows_and_tokens_is_short(scores: Scores, tiny_model: Any) -> None:
    many = Scores(rows=scores.rows * 20, tokenizer=tiny_model.tokenizer)
    assert "… and 50 more rows" in many._repr_html_()
    long = Scores(rows=(make_row([-1.0] * 1000, ids=[20] * 1000),), tokenizer=tiny_model.tokenizer)
    shown = long._repr_html_()
    assert "… and 600 more tokens" in shown
    assert len(_Tags(shown).titles) == 400
