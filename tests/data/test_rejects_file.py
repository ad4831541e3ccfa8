"""The rejects file: there when it is needed, whole, and never a stale one."""

import json

import pytest

from instructjax.data import Reject, RejectsFile

REJECT = Reject(file="a.csv", row="line 2", reason="no response: it is empty; add it", raw="c,\n")
OTHER = Reject(file="a.csv", row="line 9", reason="not UTF-8: 0xff; save it", raw="\\xff é")


def test_lines_and_counts(tmp_path):
    out = tmp_path / "new" / "scores.parquet"
    with RejectsFile(out) as rejects:
        for reject in (REJECT, OTHER, REJECT):
            rejects.write(reject)
    assert rejects.path == tmp_path / "new" / "scores.parquet.rejects.jsonl"
    lines = [json.loads(line) for line in rejects.path.read_text("utf-8").splitlines()]
    assert lines[1] == {
        "file": "a.csv",
        "row": "line 9",
        "reason": "not UTF-8: 0xff; save it",
        "raw": "\\xff é",
    }
    assert [line["row"] for line in lines] == ["line 2", "line 9", "line 2"]
    assert rejects.total == 3
    assert rejects.counts == {"no response": 2, "not UTF-8": 1}
    assert rejects.summarize() == (f"3 rows rejected (2 no response, 1 not UTF-8): {rejects.path}")
    assert list(rejects.path.parent.iterdir()) == [rejects.path]


def test_no_file_without_rejects_and_none_left_of_an_earlier_run(tmp_path):
    out = tmp_path / "scores.csv"
    with RejectsFile(out) as rejects:
        rejects.write(REJECT)
    assert rejects.path.exists()
    with RejectsFile(out) as rejects:
        pass
    assert list(tmp_path.iterdir()) == []
    assert rejects.summarize() == "no rows rejected"


def test_after_an_exception_nothing_has_changed(tmp_path):
    out = tmp_path / "scores.csv"
    with RejectsFile(out) as rejects:
        rejects.write(REJECT)
    before = rejects.path.read_bytes()
    with pytest.raises(KeyboardInterrupt), RejectsFile(out) as rejects:
        rejects.write(OTHER)
        raise KeyboardInterrupt
    assert rejects.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [rejects.path]


def test_text_that_is_not_unicode_does_not_stop_the_file(tmp_path):
    with RejectsFile(tmp_path / "out") as rejects:
        rejects.write(Reject(file="caf\udce9.csv", row="line 1", reason="not UTF-8", raw="\ud800"))
    assert json.loads(rejects.path.read_text("utf-8", "strict").replace("\\u", "\\\\u"))
