"""What a run says that it computed."""

from instructjax.cli.score_summary import describe_work
from instructjax.scoring.engine import Work
from instructjax.scoring.runs.stream import Headway


def test_tokens_that_could_be_shared_are_told_even_if_none_was() -> None:
    work = Work(requested=12_000, distinct=2_100, useful=12_000, computed=12_288)
    said = describe_work(work, Headway())
    assert "; 12,000 computed; 2,100 distinct among those packed together; 98% of" in said
    work = Work(requested=12_000, distinct=2_100, useful=2_300, computed=2_560)
    said = describe_work(work, Headway())
    assert "; 2,300 computed, as prefixes are shared; 2,100 distinct among those" in said


def test_where_all_is_distinct_one_count_says_it() -> None:
    work = Work(requested=900, distinct=900, useful=900, computed=1024)
    said = describe_work(work, Headway())
    assert "900 tokens in" in said and "distinct" not in said
