"""Ways to be broken: each row has its place and its reason, and the others are still read."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructjax.data import Example, Reject, read_examples
from instructjax.errors import DataError, UsageError

GOOD = b'{"instruction": "c", "input": "z", "output": "y"}'

# (bytes of the row, how its reason begins)
JSON_ROWS = [
    pytest.param(b'{"instruction": "c", "output": "y"', "not JSON: ", id="cut off"),
    pytest.param(b'{"instruction": "c", "output": y}', "not JSON: ", id="bare word"),
    pytest.param(
        b'{"instruction": "\xff", "output": "y"}', "not UTF-8: 0xff at byte 18", id="utf8"
    ),
    pytest.param(b'["c", "z", "y"]', "not an object: the row is a list", id="list"),
    pytest.param(b'"text"', "not an object: the row is text", id="text"),
    pytest.param(b"12", "not an object: the row is a number", id="number"),
    pytest.param(b"null", "not an object: the row is null", id="null"),
    pytest.param(b"[" * 200_000 + b"]" * 200_000, "not JSON: nested too deeply", id="bomb"),
    pytest.param(b'{"output": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit", id="digits"),
    pytest.param(b'{"instruction": "c"}', "no response: `output` is missing", id="no output"),
    pytest.param(b'{"instruction": "c", "output": null}', "no response: ", id="null output"),
    pytest.param(b'{"instruction": "c", "output": NaN}', "no response: ", id="NaN output"),
    pytest.param(
        b'{"instruction": "c", "output": ""}', "no response: `output` is empty", id="empty"
    ),
    pytest.param(b'{"instruction": "c", "output": []}', "no response: ", id="empty list"),
    pytest.param(
        b'{"instruction": "c", "output": ["a", ""]}', "no response: candidate 2", id="candidate"
    ),
    pytest.param(
        b'{"instruction": "c", "output": [null]}', "no response: candidate 1", id="null candidate"
    ),
    pytest.param(
        b'{"instruction": "c", "output": 4}', "wrong type: `output` is a number", id="number output"
    ),
    pytest.param(
        b'{"instruction": "c", "output": true}', "wrong type: `output` is true", id="bool output"
    ),
    pytest.param(
        b'{"instruction": "c", "output": {"a": 1}}', "wrong type: `output` is an ob", id="object"
    ),
    pytest.param(
        b'{"instruction": "c", "output": ["a", 4]}', "wrong type: candidate 2", id="number in list"
    ),
    pytest.param(
        b'{"instruction": 5, "output": "y"}', "wrong type: `instruction` is a number", id="c number"
    ),
    pytest.param(
        b'{"instruction": "c", "input": ["z"], "output": "y"}', "wrong type: `input`", id="z list"
    ),
    pytest.param(
        b'{"instruction": "c", "output": "y", "system": 1}', "wrong type: `system`", id="system"
    ),
    pytest.param(b'{"id": {}, "instruction": "c", "output": "y"}', "wrong type: `id`", id="id"),
    pytest.param(b'{"id": true, "instruction": "c", "output": "y"}', "wrong type: `id`", id="id2"),
    pytest.param(b'{"output": "y"}', "no instruction and no input: ", id="no prompt"),
    pytest.param(
        b'{"instruction": "", "input": null, "output": "y"}', "no instruction and", id="empty c z"
    ),
    pytest.param(
        b'{"instruction": "c", "output": "\\ud800y"}',
        "not Unicode: `output` has half of a surrogate pair, U+D800 at character 1",
        id="surrogate",
    ),
    pytest.param(
        b'{"instruction": "c", "output": "y", "history": [["tool", "x"]]}',
        "unknown role: turn 1 of `history` has the role 'tool'",
        id="role",
    ),
    pytest.param(
        b'{"instruction": "c", "output": "y", "history": "Hi"}', "wrong type: `history`", id="turns"
    ),
    pytest.param(
        b'{"instruction": "c", "output": "y", "history": [["user", null]]}',
        "wrong type: turn 1 of `history` is null",
        id="turn without text",
    ),
    pytest.param(
        b'{"prompt_ids": [1]}', "half of the token ids: there is `prompt_ids` alone", id="half ids"
    ),
    pytest.param(b'{"prompt_ids": [], "output_ids": [1]}', "no prompt: ", id="no prompt ids"),
    pytest.param(b'{"prompt_ids": [1], "output_ids": []}', "no response: ", id="no output ids"),
    pytest.param(
        b'{"prompt_ids": [1], "output_ids": [[1], []]}', "no response: candidate 2", id="ids list"
    ),
    pytest.param(
        b'{"prompt_ids": [1, -1], "output_ids": [1]}', "wrong type: `prompt_ids` holds -1", id="-1"
    ),
    pytest.param(
        b'{"prompt_ids": [1], "output_ids": [true]}', "wrong type: `output_ids`", id="bool id"
    ),
    pytest.param(b'{"prompt_ids": "1 2", "output_ids": [1]}', "wrong type: `prompt", id="ids text"),
]


@pytest.mark.parametrize(("row", "reason"), JSON_ROWS)
def test_json_line(tmp_path, row, reason):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([GOOD, b"", row, GOOD]))
    before, reject, after = read_examples(file)
    assert isinstance(before, Example) and isinstance(after, Example)
    assert (before.id, after.id) == ("a:1", "a:3")
    assert isinstance(reject, Reject)
    assert (reject.file, reject.row) == (str(file), "line 3")
    assert reject.reason.startswith(reason)
    assert reject.raw == row.decode(errors="backslashreplace")[:2000]


@pytest.mark.parametrize(("row", "reason"), [case for case in JSON_ROWS if case.id != "cut off"])
def test_json_list_element(tmp_path, row, reason):
    file = tmp_path / "a.json"
    if b": y}" in row:
        row = row.replace(b": y}", b": tru}")  # letters that could be a literal
    file.write_bytes(b"[" + b",\n".join([GOOD, row, GOOD]) + b"]")
    before, reject, after = read_examples(file)
    assert isinstance(before, Example) and isinstance(after, Example)
    assert (before.id, after.id) == ("a:1", "a:3")
    assert isinstance(reject, Reject)
    assert reject.row == "record 2"
    assert reject.reason.startswith(reason)


@pytest.mark.parametrize(
    ("rest", "detail"),
    [
        (b',{"instruction": "c", "out', "the text ends in the middle of a value"),
        (b',{"instruction": "c"', "the text ends in the middle of a value"),
        (b",", "the text ends before the list is closed"),
        (b',{"instruction": "c"],' + GOOD + b"]", "']' is out of place at byte 121"),
        (b',{"instruction: "c", "output": "y"},' + GOOD + b"]", "'c' is out of place"),
        (b"}]", "'}' is out of place"),
        (b"] " + GOOD, "text follows the end of the rows"),
    ],
)
def test_json_list_broken_in_the_middle(tmp_path, rest, detail):
    file = tmp_path / "a.json"
    file.write_bytes(b"[" + GOOD + b"," + GOOD + rest)
    *examples, reject = read_examples(file)
    assert [getattr(row, "id", row) for row in examples] == ["a:1", "a:2"]
    assert isinstance(reject, Reject)
    assert reject.row == "record 3 and everything after"
    assert reject.kind == "broken file"
    assert detail in reject.reason


@pytest.mark.parametrize("cut", ['"in', "]", '], "name": "sums", "task_prefix": "Co'])
def test_task_file_broken_in_the_middle(tmp_path, cut):
    file = tmp_path / "a.json"
    file.write_text('{"description": "Add.", "examples": [{"input": "1", "target": "1"}, ' + cut)
    example, reject = read_examples(file)
    assert example == Example(
        instruction="Add.", input="1", output="1", task="sums" if "sums" in cut else None, id="a:1"
    )
    assert isinstance(reject, Reject)
    assert reject.row == "record 2 and everything after"


CSV_ROWS = [
    (b"c,z", "wrong number of columns: 2 where the header has 3"),
    (b"c,z,y,x", "wrong number of columns: 4 where the header has 3"),
    (b"c,z,", "no response: `output` is missing"),
    (b",,y", "no instruction and no input: "),
    (b"caf\xe9,z,y", "not UTF-8: "),
    (b'c,"z"x,y', "broken quoting: "),
    (b"c,\xed\xa0\x80,y", "not UTF-8: "),
]


@pytest.mark.parametrize(("row", "reason"), CSV_ROWS)
def test_csv_row(tmp_path, row, reason):
    file = tmp_path / "a.csv"
    start = b'instruction,input,output\nc,"two\nlines",y\n\n'
    file.write_bytes(start + row + b'\nc,"z\n1\n2",y\n')
    before, reject, after = read_examples(file)
    assert before == Example(instruction="c", input="two\nlines", output="y", id="a:1")
    assert after == Example(instruction="c", input="z\n1\n2", output="y", id="a:3")
    assert isinstance(reject, Reject)
    assert reject.row == "line 5"
    assert reject.reason.startswith(reason)
    # Bytes that are not UTF-8 are escaped one way or another; the rest is as it was.
    if "UTF-8" not in reason:
        assert reject.raw == row.decode() + "\n"


def test_csv_quote_that_is_never_closed(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('instruction,output\nc,y\nd,"never closed\ne,y\nf,y\n')
    example, reject = read_examples(file)
    assert isinstance(example, Example)
    assert isinstance(reject, Reject)
    assert (reject.row, reject.kind) == ("line 3", "broken quoting")
    assert "lines 3 to 5" in reject.reason
    assert reject.raw == 'd,"never closed\ne,y\nf,y\n'


MESSAGES = [
    ([], "no response: `messages` is empty"),
    (None, "no response: `conversations` is empty or null"),
    ("Hi", "wrong type: `messages` is text"),
    ([{"role": "user", "content": "Hi"}], "last turn not assistant: "),
    ([{"role": "system", "content": "Hi"}], "last turn not assistant: "),
    ([{"role": "assistant", "content": "Hi"}], "no user turn: "),
    ([["user", "a"], ["assistant", "b"], ["assistant", "c"]], "no user turn: "),
    ([["user", "a"], ["tool", "b"]], "unknown role: turn 2 of `messages` has the role 'tool'"),
    ([["user", "a"], ["assistant", ""]], "no response: the last turn"),
    ([["user", ""], ["assistant", "b"]], "no instruction and no input: "),
    ([["user", "a"], {"role": "assistant", "content": None}], "wrong type: turn 2 of `messages`"),
    ([["user", "a"], {"content": "b"}], "unknown role: turn 2 of `messages` has the role None"),
    ([["user", "a"], ["assistant"]], "wrong type: turn 2 of `messages` is a list"),
    ([["user", "a\ud800"], ["assistant", "b"]], "not Unicode: turn 1 of `messages`"),
]


@pytest.mark.parametrize(("turns", "reason"), MESSAGES)
def test_messages(tmp_path, turns, reason):
    file = tmp_path / "a.jsonl"
    good = json.dumps({"messages": [["user", "a"], ["assistant", "b"]]})
    file.write_text(good + "\n" + json.dumps({"messages": turns}) + "\n")
    example, reject = read_examples(file)
    assert example == Example(instruction="a", output="b", id="a:1")
    assert isinstance(reject, Reject)
    assert reject.row == "line 2"
    assert reject.reason.startswith(reason)


def test_two_system_turns(tmp_path):
    file = tmp_path / "a.jsonl"
    turns = [["system", "one"], ["user", "a"], ["assistant", "b"]]
    rows = [{"messages": turns, "system": system} for system in ("two", "one", None)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    reject, same, absent = read_examples(file)
    assert isinstance(reject, Reject) and reject.kind == "two system turns"
    assert isinstance(same, Example) and isinstance(absent, Example)
    assert same.system == absent.system == "one"


def test_reasons_name_the_column_of_the_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"instruction": "c", "response": ""}\n{"instruction": "c", "response": "y"}\n')
    reject, _ = read_examples(file)
    assert isinstance(reject, Reject) and "`response`" in reject.reason


def test_parquet_rows(tmp_path):
    file = tmp_path / "a.parquet"
    # A text column whose second value is not UTF-8, as some writers leave it.
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    pq.write_table(
        pa.table({"instruction": text, "output": ["x", "y", None], "n": [1, 2, 3]}), file
    )
    example, not_utf8, no_output = read_examples(file)
    assert example == Example(instruction="a", output="x", id="a:1")
    assert isinstance(not_utf8, Reject) and isinstance(no_output, Reject)
    assert (not_utf8.row, not_utf8.kind) == ("row 2", "not UTF-8")
    assert "'instruction'" in not_utf8.reason and '"output": "y"' in not_utf8.raw
    assert (no_output.row, no_output.kind) == ("row 3", "no response")
    assert json.loads(no_output.raw) == {"instruction": "c", "output": None, "n": 3}


def test_parquet_number_where_text_is_expected(tmp_path):
    pq.write_table(pa.table({"instruction": ["c"], "output": [4]}), tmp_path / "a.parquet")
    (reject,) = read_examples(tmp_path / "a.parquet")
    assert isinstance(reject, Reject) and reject.reason.startswith("wrong type: `output`")


def test_truncated_gz_loses_only_what_is_missing(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    rows = [{"instruction": str(hash((n, "c"))), "output": str(n)} for n in range(20_000)]
    packed = gzip.compress("\n".join(json.dumps(row) for row in rows).encode())
    file.write_bytes(packed[: len(packed) // 2])
    *examples, reject = read_examples(file)
    assert len(examples) > 1000
    outputs = [row.output for row in examples if isinstance(row, Example)]
    assert outputs == [str(n) for n in range(len(examples))]
    assert isinstance(reject, Reject)
    assert reject.row == f"line {len(examples) + 1} and everything after"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"text", UsageError, "the extension '.txt' is not one that is read"),
        ("a.parquet.gz", b"text", UsageError, "the extension"),
        ("a.jsonl", b"", DataError, "the file is empty"),
        ("a.csv", b"", DataError, "the file is empty"),
        ("a.parquet", b"", DataError, "the file is empty"),
        ("a.json", b" \n", DataError, "the file is empty"),
        ("a.jsonl", b"\n \n", DataError, "the file has no rows"),
        ("a.json", b"[]", DataError, "the file has no rows"),
        ("a.json", b'{"Definition": ["d"], "Instances": []}', DataError, "the file has no rows"),
        ("a.csv", b"instruction,output\n", DataError, "the file has no rows"),
        ("a.csv", b"output,instruction,output\n", DataError, "names output more than once"),
        ("a.csv", b"instruction,\xff\nc,y\n", DataError, "the header is not UTF-8"),
        ("a.csv", b'instruction,"output\nc,y\n', DataError, "broken quoting"),
        ("a.parquet", b"PAR1 not really", DataError, "not a whole Parquet file"),
        ("a.json", b"instruction: c", DataError, "the file is not JSON"),
        ("a.json", b'[{"instruction": "c", ', DataError, "nothing could be read"),
        ("a.json", b'{"instruction": "c", ', DataError, "neither a list of objects nor a task"),
        ("a.json", b'{"a": ' + b"[" * 200_000, DataError, "neither a list of objects nor a task"),
        ("a.jsonl", "{}".encode("utf-16"), DataError, "the text is UTF-16"),
        ("a.jsonl.gz", b"not gzip", DataError, "cannot be read"),
        ("a.jsonl", b'{"instruction": "c"}', DataError, "fit no format"),
    ],
)
def test_file_as_a_whole(tmp_path, name, content, error, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_examples(file)
    assert str(caught.value).startswith(str(file))
    assert caught.value.remedy


def test_truncated_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": ["c"], "output": ["y"]}), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        read_examples(file)


def test_missing_file_and_folder_without_data(tmp_path):
    for name in ("missing.jsonl", "missing"):
        with pytest.raises(UsageError, match="there is no such file"):
            read_examples(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(UsageError, match="the folder has no data files"):
        read_examples(tmp_path)


def test_permission_denied(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError("denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="permission denied"):
        read_examples(tmp_path / "a.jsonl")


def test_a_file_of_broken_rows_only(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("one\ntwo\n")
    assert [row.row for row in read_examples(file) if isinstance(row, Reject)] == [
        "line 1",
        "line 2",
    ]


def test_200_rows_of_which_20_are_broken_in_10_ways(tmp_path):
    file = tmp_path / "a.jsonl"
    broken = {
        b"{": "not JSON",
        b'{"instruction": "\xe9", "output": "y"}': "not UTF-8",
        b"[1]": "not an object",
        b'{"instruction": "c"}': "no response",
        b'{"instruction": "c", "output": [""]}': "no response",
        b'{"instruction": "c", "output": 4}': "wrong type",
        b'{"output": "y"}': "no instruction and no input",
        b'{"instruction": "\\udfff", "output": "y"}': "not Unicode",
        b'{"instruction": "c", "output": "y", "history": [["robot", "x"]]}': "unknown role",
        b'{"prompt_ids": [1, 2]}': "half of the token ids",
    }
    ways = list(broken)
    lines, expected = [], {}
    for n in range(200):
        if n % 10 == 3:
            way = ways[len(expected) % len(ways)]
            expected[f"line {n + 1}"] = broken[way]
            lines.append(way)
        else:
            lines.append(json.dumps({"instruction": "c", "output": str(n)}).encode())
    file.write_bytes(b"\n".join(lines) + b"\n")
    rows = list(read_examples(file))
    examples = [row for row in rows if isinstance(row, Example)]
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert (len(examples), len(rejects)) == (180, 20)
    assert [row.output for row in examples] == [str(n) for n in range(200) if n % 10 != 3]
    assert {row.row: row.kind for row in rejects} == expected
