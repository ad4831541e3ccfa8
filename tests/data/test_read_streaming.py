"""The size of a file does not matter."""

import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructjax.data import Example, read_examples

NUM_ROWS = 1_000
TEXT = "word " * 12_000  # 60,000 bytes: 60 MB in all


def write_rows(path, start, middle, end):
    row = json.dumps({"instruction": "c", "input": TEXT, "output": "y", "target": "y"})
    with path.open("w") as stream:
        stream.write(start + row)
        for _ in range(NUM_ROWS - 1):
            stream.write(middle + row)
        stream.write(end)


def count_and_measure(path):
    tracemalloc.start()
    try:
        count = sum(isinstance(row, Example) for row in read_examples(path))
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "start", "middle", "end"),
    [
        ("a.jsonl", "", "\n", "\n"),
        ("a.json", "[", ",", "]"),
        ("b.json", '{"description": "d", "examples": [', ",", '], "name": "n"}'),
    ],
)
def test_memory_is_constant(tmp_path, name, start, middle, end):
    write_rows(tmp_path / name, start, middle, end)
    count, peak = count_and_measure(tmp_path / name)
    assert count == NUM_ROWS
    assert peak < 3_000_000


def test_memory_of_csv_is_constant(tmp_path):
    with (tmp_path / "a.csv").open("w") as stream:
        stream.write("instruction,output\n")
        stream.writelines(f"{TEXT},y\n" for _ in range(NUM_ROWS))
    count, peak = count_and_measure(tmp_path / "a.csv")
    assert count == NUM_ROWS
    assert peak < 3_000_000


def test_memory_of_parquet_is_that_of_a_batch(tmp_path):
    # A page of a column is the least that can be read, and 1,024 rows the least that is written.
    texts = [f"{n} {TEXT}"[:6_000] for n in range(10_000)]
    table = pa.table({"instruction": texts, "output": ["y"] * len(texts)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    del texts, table
    before = pa.total_allocated_bytes()
    most, count = 0, 0
    for _ in read_examples(tmp_path / "a.parquet"):
        count += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == 10_000
    assert most < 15_000_000  # one row group of 60 MB


def test_a_line_of_many_megabytes(tmp_path):
    for name, wrap in (("a.jsonl", "%s"), ("a.json", "[%s]")):
        row = json.dumps({"instruction": "x" * 20_000_000, "output": "y"})
        (tmp_path / name).write_text(wrap % row)
        (example,) = read_examples(tmp_path / name)
        assert isinstance(example, Example) and len(example.instruction) == 20_000_000
    (tmp_path / "a.csv").write_text("instruction,output\n" + "x" * 20_000_000 + ",y\n")
    (example,) = read_examples(tmp_path / "a.csv")
    assert isinstance(example, Example) and len(example.instruction) == 20_000_000


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    file = tmp_path / "a.jsonl"
    line = json.dumps({"instruction": "c", "output": "y"}) + "\n"
    file.write_text(line * 5_000)
    rows = read_examples(file)
    assert isinstance(next(rows), Example)
    os.truncate(file, len(line) * 2_500)  # seen only because the rest was not yet read
    assert sum(1 for _ in rows) < 3_000
