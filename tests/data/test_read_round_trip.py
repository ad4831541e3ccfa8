"""What other writers (json, csv, pyarrow) write is read back equal."""

import csv
import json
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data import Example, Message, Reject, read_examples

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
full = text.filter(bool)
LINE_BREAK = re.compile("\r\n|\r|\n")
names = st.one_of(st.none(), full)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": text}
    ),
    max_size=3,
)
row = {"instruction": full, "input": text, "id": names, "task": names, "category": names}
outputs = st.lists(full, min_size=1, max_size=3)
flat_rows = st.lists(st.fixed_dictionaries(row | {"output": full}), min_size=1, max_size=5)
rows = st.lists(
    st.fixed_dictionaries(row | {"output": outputs, "history": turns}), min_size=1, max_size=5
)


def to_example(row, number):
    output = row["output"]
    return Example(
        instruction=row["instruction"],
        input=row["input"],
        output=output if isinstance(output, str) else tuple(output),
        id=row["id"] or f"rows:{number}",
        task=row["task"],
        category=row["category"],
        history=tuple(Message(**turn) for turn in row.get("history", [])),
    )


@given(rows=rows, ascii=st.booleans(), indent=st.sampled_from([None, 2]))
@settings(max_examples=40, deadline=None)
def test_json(rows, ascii, indent):
    expected = [to_example(row, n) for n, row in enumerate(rows, 1)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps(rows, ensure_ascii=ascii, indent=indent), "utf-8")
        assert list(read_examples(file)) == expected
        lines = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
        file = file.with_name("rows.jsonl")
        file.write_bytes(lines.encode())
        assert list(read_examples(file)) == expected


@given(rows=rows)
@settings(max_examples=40, deadline=None)
def test_parquet(rows):
    expected = [to_example(row, n) for n, row in enumerate(rows, 1)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        turn = pa.struct({"role": pa.string(), "content": pa.string()})
        schema = pa.schema(
            {name: pa.string() for name in ("instruction", "input", "id", "task", "category")}
            | {"output": pa.list_(pa.string()), "history": pa.list_(turn)}
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        assert list(read_examples(file)) == expected


@given(rows=flat_rows, newline=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=60, deadline=None)
def test_csv_with_the_line_on_which_each_row_starts(rows, newline):
    expected = [to_example(row, n) for n, row in zip(range(1, 100, 2), rows, strict=False)]
    columns = ["instruction", "input", "output", "id", "task", "category"]
    line, starts = 2, []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, quoting=csv.QUOTE_ALL, lineterminator=newline)
            writer.writeheader()
            for row in rows:
                for cells in (row, row | {"output": ""}):
                    writer.writerow(cells)
                    starts.append(f"line {line}")
                    line += 1 + sum(len(LINE_BREAK.findall(text or "")) for text in cells.values())
        got = list(read_examples(file))
    assert got[::2] == expected
    assert all(isinstance(row, Reject) for row in got[1::2])
    assert [row.row for row in got if isinstance(row, Reject)] == starts[1::2]
