"""Score tables: the contract's columns, equal after a round trip, whole or not there at all."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.errors import DataError, UsageError
from instructjax.scoring import read_metadata, read_scores
from instructjax.scoring.tables import writers
from instructjax.scoring.tables.files import open_table

FORMATS = ("parquet", "jsonl", "csv")
METADATA = {"model": "tiny", "layout": "user", "note": 'é \n "quoted"'}
COLUMNS = [
    "id",
    "candidate",
    "context",
    "instruction_id",
    "input_id",
    "task",
    "log_prob",
    "num_tokens",
    "num_bytes",
    "log_prob_per_token",
    "bits_per_byte",
    "greedy",
    "status",
    "token_ids",
    "token_log_probs",
]


def make_record(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": "a:1",
        "candidate": 0,
        "context": "cz",
        "instruction_id": None,
        "input_id": "i7",
        "task": "add",
        "log_prob": -1.7500000123456789,
        "num_tokens": 2,
        "num_bytes": 5,
        "log_prob_per_token": -0.87500000617,
        "bits_per_byte": 0.5049,
        "greedy": True,
        "status": "ok",
        "token_ids": [5, 2],
        "token_log_probs": [float(np.float32(-0.1)), -1.65],
    }
    return record | changes


def write(path: Path, records: list[dict[str, Any]], **options: Any) -> None:
    with open_table(path, METADATA, **options) as put:
        for record in records:
            put(record)


def same(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN, float32 for token log-probs."""
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, map(np.float32, left), right))
    if isinstance(left, float | np.floating) and math.isnan(left):
        return math.isnan(right)
    return left == right


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"scores.{format}"
    records = [
        make_record(),
        make_record(id="a\rb", status="\r"),
        make_record(id="\0", task=" x "),
        make_record(id='a,"b"\n\r\n;\u2028 é 🎉', candidate=3, greedy=False, status="a,b=3"),
        make_record(bits_per_byte=None, num_bytes=0, instruction_id="x", input_id=None, task=None),
        make_record(log_prob=math.nan, log_prob_per_token=math.nan, token_log_probs=[math.nan, 0]),
    ]
    write(path, records)
    table = read_scores(path)
    assert table.schema.names == COLUMNS
    for found, wanted in zip(table.to_pylist(), records, strict=True):
        for name in COLUMNS:
            left, right = wanted[name], found[name]
            assert same(left, right) or (left is right is None), name
    assert read_metadata(table) == METADATA


def test_float32_and_float64_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal(500).astype(np.float32) * 10.0 ** rng.integers(-30, 30, 500)
    tokens = tokens.astype(np.float32)
    sums = rng.standard_normal(20) * 1e3
    records = [
        make_record(log_prob=float(x), token_log_probs=[float(str(t)) for t in tokens])
        for x in sums
    ]
    for format in FORMATS:
        path = tmp_path / f"scores.{format}"
        write(path, records)
        table = read_scores(path)
        assert table.column("log_prob").to_pylist() == sums.tolist()
        back = np.array(table.column("token_log_probs")[0].as_py(), np.float32)
        assert (back == tokens).all()


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.none() | names, st.floats(-1e5, 0)), max_size=5))
def test_any_name_and_number_in_any_format(rows: list[tuple[str, str | None, float]]) -> None:
    records = [make_record(id=a, task=b, log_prob=x) for a, b, x in rows]
    with tempfile.TemporaryDirectory() as folder:
        for format in FORMATS:
            path = Path(folder) / f"s.{format}"
            write(path, records)
            found = read_scores(path).to_pylist()
            assert [(r["id"], r["task"], r["log_prob"]) for r in found] == rows


def test_what_other_programs_read(tmp_path: Path) -> None:
    for format in FORMATS:
        write(tmp_path / f"s.{format}", [make_record(log_prob=math.nan), make_record()])
    schema = pq.read_schema(tmp_path / "s.parquet")
    assert schema.names == COLUMNS
    assert schema.field("token_log_probs").type == pa.list_(pa.float32())
    assert schema.field("log_prob").type == pa.float64()
    assert json.loads(schema.metadata[b"instructjax"]) == METADATA
    lines = (tmp_path / "s.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first["log_prob"] is None
    assert second == make_record(token_log_probs=[float(np.float32(-0.1)), -1.65])
    header, _, row = (tmp_path / "s.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert row.endswith(",true,ok,5 2,-0.10000000149011612 -1.65")
    for format in ("jsonl", "csv"):
        assert json.loads((tmp_path / f"s.{format}.meta.json").read_text()) == METADATA
    assert not (tmp_path / "s.parquet.meta.json").exists()


def test_parquet_is_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "ROW_GROUP", 10)
    path = tmp_path / "s.parquet"
    write(path, [make_record(candidate=i) for i in range(25)])
    assert pq.ParquetFile(path).num_row_groups == 3
    assert read_scores(path).column("candidate").to_pylist() == list(range(25))
    monkeypatch.setattr(writers, "ROW_GROUP_TOKENS", 8)
    write(path, [make_record()] * 25, overwrite=True)
    assert pq.ParquetFile(path).num_row_groups == 7


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError, SystemExit])
def test_an_end_by_exception_leaves_no_file(
    tmp_path: Path, format: str, error: type[BaseException]
) -> None:
    with pytest.raises(error), open_table(tmp_path / f"s.{format}", METADATA) as put:
        put(make_record())
        raise error("in the middle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_end_by_exception_keeps_the_old_file(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"s.{format}"
    write(path, [make_record(id="old")])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError), open_table(path, {"model": "new"}, overwrite=True) as put:
        put(make_record(id="new"))
        raise ValueError
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    write(path, [make_record(id="old")])
    with pytest.raises(UsageError, match="--overwrite"):
        write(path, [make_record(id="new")])
    assert read_scores(path).column("id").to_pylist() == ["old"]
    write(path, [make_record(id="new")], overwrite=True)
    assert read_scores(path).column("id").to_pylist() == ["new"]


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with pytest.raises(DataError, match="appeared"), open_table(path, METADATA) as put:
        put(make_record())
        path.write_text("mine")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["s.txt", "s", "s.parquet.gz", "s.json"])
def test_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.parquet, \.jsonl, \.csv"):
        write(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write(tmp_path / "folder.csv", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="folder cannot be made"):
        write(tmp_path / "file" / "s.csv", [])
    write(tmp_path / "new" / "deep" / "s.csv", [make_record()])
    assert (tmp_path / "new" / "deep" / "s.csv").exists()


_FILL = """
import resource, signal, sys
from instructjax.scoring.tables.files import open_table
from instructjax.scoring.tables import writers
from instructjax.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
record = {record!r}
try:
    with open_table(sys.argv[1], {{}}) as put:
        for i in range(3000):
            put(record | {{"id": str(i * 7919 % 100_003) * 20}})
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"s.{format}"
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", _FILL.format(record=make_record()), str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    assert "cannot be written: File too large" in result.stdout
    assert "Exception ignored" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.parquet", b"PAR1 not really"),
        ("s.parquet", b""),
        ("s.jsonl", b'{"id": "a"}\n'),
        ("s.jsonl", b"[1, 2\n"),
        ("s.jsonl", b"\xff\xfe\n"),
        ("s.csv", b"id,log_prob\na,1\n"),
        ("s.csv", (",".join(COLUMNS) + "\na,b,cz,,,,,,,,,,,,\n").encode()),
        ("s.csv", (",".join(COLUMNS) + "\na,1\n").encode()),
        ("s.csv", (",".join(COLUMNS) + "\na,0,cz,,,,-1,1,1,-1,,true,ok,7\n").encode()),
        ("s.jsonl", b"{}\n"),
    ],
)
def test_what_is_no_score_table(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a score table") as caught:
        read_scores(path)
    assert caught.value.file == str(path)


RECORD = '"id":"a","candidate":0,"context":"cz","instruction_id":null,"input_id":null,"task":null,'
RECORD += '"log_prob":-1,"num_tokens":1,"num_bytes":1,"log_prob_per_token":-1,"bits_per_byte":1,'
RECORD += '"greedy":true,"status":"ok","token_ids":[1],"token_log_probs":[-1]'
DETAIL = ',"token_entropies":[1],"token_ranks":[1],"top_ids":[],"top_log_probs":[]'
CELLS = "a,0,cz,,,,-1,1,1,-1,1,true,ok,1,-1"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.jsonl", f"{{{RECORD}}}\n{{{RECORD}{DETAIL}}}\n", "has a token_entropies"),
        ("s.jsonl", f"{{{RECORD}{DETAIL}}}\n{{{RECORD}}}\n", "token_entropies"),
        ("s.jsonl", f'{{{RECORD},"top_ids":[]}}\n', "none token_entropies"),
        ("s.csv", f"{','.join(COLUMNS)},top_ids\n{CELLS},\n", "none token_entropies"),
        ("s.csv", f"{','.join(COLUMNS)}\n{CELLS},7\n", "more cells"),
    ],
)
def test_rows_of_other_columns_are_refused(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_scores(path)
    plain = f"{','.join(COLUMNS)}\n{CELLS}\n" if name == "s.csv" else f"{{{RECORD}}}\n"
    path.write_text(plain)
    assert read_scores(path).num_rows == 1


def test_other_tables_and_missing_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "s.parquet")
    with pytest.raises(DataError):
        read_scores(tmp_path / "s.parquet")
    with pytest.raises(UsageError, match="no such file"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="no score table"):
        read_scores(tmp_path / "s.txt")
