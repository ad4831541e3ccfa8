"""Each container and each format, from literal files to literal examples."""

import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructjax.data import FORMATS, Example, Message, Reject, detect_format, read_examples
from instructjax.errors import DataError, UsageError


def read_all(path, **options) -> list[Any]:
    return list(read_examples(path, **options))


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


ROWS = [
    {"instruction": "Translate to French.", "input": "cat", "output": "chat"},
    {"instruction": "Name a colour.", "input": "", "output": ["red", "blue"]},
]
EXAMPLES = [
    Example(instruction="Translate to French.", input="cat", output="chat", id="rows:1"),
    Example(instruction="Name a colour.", output=("red", "blue"), id="rows:2"),
]


def test_json_lines(tmp_path):
    text = "\n".join(json.dumps(row) for row in ROWS)
    for name in ("rows.jsonl", "rows.ndjson", "rows.json"):  # the last one by its content
        assert read_all(write(tmp_path / name, text)) == EXAMPLES
    assert read_all(write(tmp_path / "rows.jsonl", text + "\n")) == EXAMPLES


@pytest.mark.parametrize("indent", [None, 2])
def test_json_list(tmp_path, indent):
    assert read_all(write(tmp_path / "rows.json", json.dumps(ROWS, indent=indent))) == EXAMPLES


def test_one_indented_json_object_is_one_row(tmp_path):
    assert read_all(write(tmp_path / "rows.json", json.dumps(ROWS[0], indent=2))) == EXAMPLES[:1]


def test_parquet(tmp_path):
    table = pa.table(
        {
            "instruction": ["Translate to French.", "Name a colour."],
            "input": ["cat", None],
            "output": [["chat"], ["red", "blue"]],
            "unused": [1.5, 2.5],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    first, second = read_all(tmp_path / "rows.parquet")
    assert first.outputs == ("chat",)
    assert second == EXAMPLES[1]


def test_csv_and_tsv(tmp_path):
    csv_text = (
        'instruction,input,output,id\r\n"Add, please.",1 + 1,"2\r\n""two""",a\r\nSay hi.,,hi,\r\n'
    )
    expected = [
        Example(instruction="Add, please.", input="1 + 1", output='2\r\n"two"', id="a"),
        Example(instruction="Say hi.", output="hi", id="rows:2"),
    ]
    assert read_all(write(tmp_path / "rows.csv", csv_text)) == expected
    tsv_text = "instruction\toutput\nSay hi, please.\thi\n"
    (row,) = read_all(write(tmp_path / "rows.tsv", tsv_text))
    assert row == Example(instruction="Say hi, please.", output="hi", id="rows:1")


def test_csv_text_stays_text(tmp_path):
    text = 'instruction,output,id\n1,007,1.50\nnull,"[1, 2]",NaN\n'
    assert read_all(write(tmp_path / "rows.csv", text)) == [
        Example(instruction="1", output="007", id="1.50"),
        Example(instruction="null", output="[1, 2]", id="NaN"),
    ]


def test_gz(tmp_path):
    text = "\n".join(json.dumps(row) for row in ROWS).encode()
    assert read_all(write(tmp_path / "rows.jsonl.gz", gzip.compress(text))) == EXAMPLES
    text = json.dumps(ROWS).encode()
    assert read_all(write(tmp_path / "rows.json.gz", gzip.compress(text))) == EXAMPLES
    text = b"instruction,input,output\nTranslate to French.,cat,chat\n"
    assert read_all(write(tmp_path / "rows.csv.gz", gzip.compress(text))) == EXAMPLES[:1]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_byte_order_mark_and_crlf(tmp_path, name):
    first = '{"instruction": "Hi", "output": "a"}'
    second = '{"instruction": "Ho", "output": "b"}'
    text = {
        "rows.jsonl": f"{first}\r\n\r\n{second}\r\n",
        "rows.json": f"[{first},\r\n{second}]\r\n",
        "rows.csv": "instruction,output\r\nHi,a\r\n\r\nHo,b\r\n",
    }[name]
    assert read_all(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == [
        Example(instruction="Hi", output="a", id="rows:1"),
        Example(instruction="Ho", output="b", id="rows:2"),
    ]


def test_contract_columns(tmp_path):
    row = {
        "instruction": "c",
        "input": "z",
        "output": "y",
        "id": 7,
        "instruction_id": "i",
        "input_id": 2.5,
        "task": "t",
        "category": "k",
        "system": "Be brief.",
        "history": [{"role": "user", "content": "Hi"}, ["assistant", "Hello"]],
        "prompt_ids": [1, 2],
        "output_ids": [[3], [4, 5]],
        "unknown": {"is": "ignored"},
    }
    (example,) = read_all(write(tmp_path / "a.jsonl", json.dumps(row)))
    assert example == Example(
        instruction="c",
        input="z",
        output="y",
        id="7",
        instruction_id="i",
        input_id="2.5",
        task="t",
        category="k",
        system="Be brief.",
        history=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
        prompt_ids=(1, 2),
        output_ids=((3,), (4, 5)),
    )


def test_token_ids_without_text(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"prompt_ids": [1, 2], "output_ids": [3]}')
    assert read_all(file) == [Example(prompt_ids=(1, 2), output_ids=(3,), id="a:1")]


def test_ids_count_rejected_rows_and_may_repeat(tmp_path):
    good = '{"instruction": "c", "output": "y"%s}\n'
    text = good % "" + "\n{broken\n" + good % "" + good % ', "id": "x"' + good % ', "id": "x"'
    text += good % ', "id": null' + good % ', "id": NaN' + good % ', "id": ""'
    rows = read_all(write(tmp_path / "a.b.jsonl", text))
    ids = [row.id for row in rows if isinstance(row, Example)]
    assert ids == ["a.b:1", "a.b:3", "x", "x", "a.b:6", "a.b:7", "a.b:8"]
    assert [row.row for row in rows if isinstance(row, Reject)] == ["line 3"]


def test_examples_know_their_place(tmp_path):
    row = {"instruction": "c", "output": "y"}
    lines = write(tmp_path / "a.jsonl", f"\n{json.dumps(row)}\n")
    listed = write(tmp_path / "b.json", json.dumps([row]))
    cells = write(tmp_path / "c.csv", "instruction,output\nc,y\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    assert [example.place for example in read_all(tmp_path)] == [
        (str(lines), "line 2"),
        (str(listed), "record 1"),
        (str(cells), "line 2"),
        (str(tmp_path / "d.parquet"), "row 1"),
    ]


def test_text_is_kept_character_by_character(tmp_path):
    row = {"instruction": "  c\n", "input": "\tz\u2028\x00", "output": " \U0001f600\r\n"}
    for ascii_only in (True, False):
        file = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=ascii_only))
        (example,) = read_all(file)
        assert (example.instruction, example.input) == ("  c\n", "\tz\u2028\x00")
        assert example.output == " \U0001f600\r\n"


def test_alpaca(tmp_path):
    text = '[{"instruction": "c", "input": "", "output": "y", "text": "Below is an instruction"}]'
    file = write(tmp_path / "a.json", text)
    for format in (None, "alpaca", "contract"):
        assert read_all(file, format=format) == [Example(instruction="c", output="y", id="a:1")]


def test_dolly(tmp_path):
    row = {"instruction": "c", "context": "z", "response": "y", "category": "closed_qa"}
    expected = [Example(instruction="c", input="z", output="y", category="closed_qa", id="a:1")]
    for format in (None, "dolly"):
        assert read_all(write(tmp_path / "a.jsonl", json.dumps(row)), format=format) == expected


def test_super_natural_instructions_task_file(tmp_path):
    task = {
        "Contributors": ["A"],
        "Categories": ["Question Answering", "Other"],
        "Definition": ["Answer the question."],
        "Positive Examples": [{"input": "p", "output": "q", "explanation": "[{"}],
        "Negative Examples": [],
        "Instances": [
            {"id": "task001-1", "input": "z1", "output": ["y1", "y2"]},
            {"id": "task001-2", "input": "z2", "output": ["y3"]},
        ],
        "Instance License": ["Apache 2.0"],
    }
    expected = [
        Example(
            instruction="Answer the question.",
            input=z,
            output=y,
            id=id,
            task="task001_quoref",
            category="Question Answering",
        )
        for id, z, y in [("task001-1", "z1", ("y1", "y2")), ("task001-2", "z2", ("y3",))]
    ]
    for indent in (None, 4):
        file = write(tmp_path / "task001_quoref.json", json.dumps(task, indent=indent))
        assert read_all(file) == expected
    assert read_all(file, format="superni") == expected


def test_super_natural_instructions_rows(tmp_path):
    row = {
        "definition": "Answer.",
        "input": "z",
        "outputs": ["a", "b"],
        "task": "task7",
        "category": "QA",
        "id": "task7-1",
    }
    expected = Example(
        instruction="Answer.",
        input="z",
        output=("a", "b"),
        task="task7",
        category="QA",
        id="task7-1",
    )
    assert read_all(write(tmp_path / "a.jsonl", json.dumps(row))) == [expected]
    # The same collection under the column names that it has elsewhere: the definition must not
    # be lost by taking this for FLAN.
    row = {"task_name": "task7", "id": "i", "definition": "Answer.", "inputs": "z", "targets": "a"}
    assert read_all(write(tmp_path / "a.jsonl", json.dumps(row))) == [
        Example(instruction="Answer.", input="z", output="a", task="task7", id="i")
    ]


def test_messages(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    expected = Example(
        instruction="2 + 2?",
        output="4",
        system="Be brief.",
        history=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello")),
        id="a:1",
    )
    assert read_all(write(tmp_path / "a.jsonl", json.dumps({"messages": turns}))) == [expected]
    pq.write_table(pa.table({"messages": [turns]}), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet", format="messages") == [expected]


def test_share_gpt_conversations(tmp_path):
    row = {
        "id": "u1",
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    }
    assert read_all(write(tmp_path / "a.json", json.dumps([row]))) == [
        Example(instruction="Hi", output="Hello", system="Be kind.", id="u1")
    ]


def test_flan(tmp_path):
    row = {"inputs": "Is it so?\nOPTIONS: yes, no", "targets": "yes", "_task_name": "bool_q"}
    expected = Example(instruction=row["inputs"], output="yes", task="bool_q", id="a:1")
    assert read_all(write(tmp_path / "a.jsonl", json.dumps(row))) == [expected]


def test_big_bench(tmp_path):
    task = {
        "name": "sums",
        "description": "Add two numbers",
        "keywords": ["arithmetic"],
        "examples": [
            {"input": "1 + 1", "target": "2"},
            {"input": "2 + 1", "target": ["3", "three"]},
            {"input": "2 + 2", "target_scores": {"5": 0, "4": 1, "3": 0}},
        ],
    }
    file = tmp_path / "task.json"
    got = read_all(write(file, json.dumps(task)))
    assert got == [
        Example(
            instruction="Add two numbers", input=z, output=y, task="sums", id=f"task:{n}", answer=a
        )
        for n, (z, y, a) in enumerate(
            [
                ("1 + 1", "2", None),
                ("2 + 1", ("3", "three"), None),
                ("2 + 2", ("5", "4", "3"), 1),
            ],
            start=1,
        )
    ]
    task["task_prefix"] = "Compute:\n"  # a member behind the rows belongs to them too
    assert {row.instruction for row in read_all(write(file, json.dumps(task)))} == {"Compute:\n"}


def test_examples_column_in_json_lines_is_not_a_task_file(tmp_path):
    rows = [{"instruction": "c", "output": y, "examples": ["e"]} for y in "ab"]
    file = write(tmp_path / "a.json", "\n".join(json.dumps(row) for row in rows))
    assert [row.output for row in read_all(file)] == ["a", "b"]


def test_fields(tmp_path):
    rows = [{"question": "q", "meta": {"answer": {"text": ["a", "b"]}, "a.b": "t"}, "input": "z"}]
    file = write(tmp_path / "a.json", json.dumps(rows))
    fields = {"instruction": "question", "output": "meta.answer.text", "task": "meta.a.b"}
    with pytest.raises(UsageError, match="no column 'meta.x'") as caught:
        read_examples(file, fields=fields | {"category": "meta.x"})
    assert "question, meta, input" in str(caught.value)
    assert read_all(file, fields=fields) == [
        Example(instruction="q", input="z", output=("a", "b"), task="t", id="a:1")
    ]


def test_a_column_with_a_dot_in_its_name(tmp_path):
    file = write(tmp_path / "a.csv", "q.text,a\nc,y\n")
    (row,) = read_all(file, fields={"instruction": "q.text", "output": "a"})
    assert row == Example(instruction="c", output="y", id="a:1")


def test_fields_can_name_members_of_a_task_file(tmp_path):
    task = {"about": ["Sum.", "Add."], "examples": [{"q": "1 + 1", "a": "2"}]}
    file = write(tmp_path / "a.json", json.dumps(task))
    fields = {"instruction": "about.1", "input": "q", "output": "a"}
    (row,) = read_all(file, fields=fields)
    assert row == Example(instruction="Add.", input="1 + 1", output="2", id="a:1")


def test_forced_format_wins_over_detection(tmp_path):
    row = {"instruction": "c", "output": "y", "context": "z", "response": "other"}
    file = write(tmp_path / "a.jsonl", json.dumps(row))
    assert read_all(file)[0].output == "y"
    assert read_all(file, format="dolly")[0].output == "other"


def test_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    line = '{"instruction": "c", "output": "%s"}'
    write(tmp_path / "b.jsonl", line % "b")
    write(tmp_path / "sub" / "a.jsonl", "{\n" + line % "s")
    write(tmp_path / "a.csv", "instruction,response\nc,a\n")
    write(tmp_path / "notes.txt", "not data")
    write(tmp_path / "scores.csv.rejects.jsonl", line % "a reject of an earlier run")
    write(tmp_path / ".hidden" / "h.jsonl", line % "h")
    rows = read_all(tmp_path)
    assert [row.output for row in rows if isinstance(row, Example)] == ["a", "b", "s"]
    (reject,) = [row for row in rows if isinstance(row, Reject)]
    assert (reject.file, reject.row) == (str(tmp_path / "sub" / "a.jsonl"), "line 1")


def test_options_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'csv'") as caught:
        read_examples(tmp_path / "missing.csv", format="csv")
    assert all(name in str(caught.value) for name in FORMATS)
    with pytest.raises(UsageError, match="unknown field 'question'") as caught:
        read_examples(tmp_path / "missing.csv", fields={"question": "instruction"})
    assert "instruction, input, output" in str(caught.value)
    with pytest.raises(UsageError, match="exclude each other"):
        read_examples(tmp_path / "missing.csv", format="dolly", fields={"output": "a"})


def test_columns_that_fit_no_format(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"question": "q", "answer": "a"}')
    with pytest.raises(DataError, match=r"question, answer") as caught:
        read_examples(file)
    assert "--field instruction=COLUMN" in str(caught.value)
    assert str(file) in str(caught.value)
    with pytest.raises(DataError, match="format flan has inputs and targets"):
        read_examples(file, format="flan")


def test_detection_looks_past_broken_rows(tmp_path):
    text = '{nonsense\n{"note": "no columns of a format"}\n{"inputs": "c", "targets": "y"}\n'
    rows = read_all(write(tmp_path / "a.jsonl", text))
    assert [type(row) for row in rows] == [Reject, Reject, Example]
    assert rows[2].output == "y"


@pytest.mark.parametrize(
    ("columns", "format"),
    [
        (["instruction", "input", "output"], "contract"),
        (["instruction", "output", "text"], "contract"),
        (["prompt_ids", "output_ids"], "contract"),
        (["instruction", "context", "response", "category"], "dolly"),
        (["Definition", "input", "output"], "superni"),
        (["definition", "input", "outputs"], "superni"),
        (["definition", "instruction", "input", "output"], "contract"),
        (["messages"], "messages"),
        (["conversations", "id"], "messages"),
        (["inputs", "targets"], "flan"),
        (["input", "target"], "bigbench"),
        (["input", "target_scores"], "bigbench"),
        (["instruction", "input"], None),
        (["output"], None),
    ],
)
def test_detect_format(columns, format):
    assert detect_format(columns) == format
