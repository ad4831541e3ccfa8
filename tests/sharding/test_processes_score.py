"""Law 3 over processes: several that score together write the table that one writes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.cli.main import main
from instructjax.scoring import read_scores
from instructjax.scoring.runs import chunks

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"
FEW_ROWS = "from instructjax.scoring.runs import chunks; chunks.CHUNK_ROWS = 16"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of many lengths, now and then two candidates, now and then a bad row."""
    file = tmp_path / "rows.jsonl"
    with file.open("w") as stream:
        for n in range(90):
            row: dict[str, Any] = {"instruction": f"Say {n}.", "input": "x " * (n * 7 % 31)}
            row["output"] = ["y", f"no {n}"] if n % 5 == 0 else f"y {n}"
            if n % 13 == 4:
                row["output"] = "" if n % 2 else "9 " * 300
            stream.write(json.dumps(row) + "\n")
    return file


@pytest.fixture
def alone(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table of one process with one device."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    out = tmp_path / "alone.parquet"
    assert main(["score", str(data), "--out", str(out), "--model", str(TINY)]) == 0
    return out


def read_bytes(out: Path) -> list[bytes]:
    rejects = out.with_name(out.name + ".rejects.jsonl")
    return [file.read_bytes() for file in (out, rejects)]


def command(data: Path, out: Path, *options: str) -> list[Any]:
    return ["score", data, "--out", out, "--model", TINY, *options]


def test_law_3_two_processes_write_the_table_of_one(start, data, alone, tmp_path):
    out = tmp_path / "two.parquet"
    first, second = start(command(data, out), before=FEW_ROWS).ends()
    assert first.code == second.code == 0, (first.err, second.err)
    assert read_bytes(out) == read_bytes(alone)
    assert not out.with_name(out.name + ".parts").exists()
    # Process 0 speaks for both, and nothing else does.
    assert first.out.startswith("context ") and not second.out
    assert "wrote 100 scores of 83 rows" in first.out
    assert "scores" not in second.out and "rejected" not in second.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [(4, 2, "data=2,fsdp=4"), (2, 4, "fsdp=4,tensor=2"), (4, 2, "data=2,fsdp=2,tensor=2")]
    + [(2, 1, "tensor=2"), (2, 1, "context=2")],
)
def test_law_3_on_meshes_over_processes(start, data, alone, tmp_path, count, devices, mesh):
    out = tmp_path / "many.parquet"
    together = start(
        command(data, out, "--mesh", mesh), count=count, devices=devices, before=FEW_ROWS
    )
    for end in together.ends():
        assert end.code == 0, end.err
    if "fsdp" in mesh and "tensor" not in mesh:
        assert read_bytes(out) == read_bytes(alone)
        return
    # Heads are summed over devices, keys taken in other tiles: other roundings.
    found, expected = (read_scores(table) for table in (out, alone))
    for ours, theirs in zip(
        found["token_log_probs"].to_pylist(), expected["token_log_probs"].to_pylist(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_law_8_killed_processes_go_on_as_others(start, data, alone, tmp_path):
    """Four processes, one killed; then two, the first killed; then one."""
    out = tmp_path / "killed.parquet"
    parts = out.with_name(out.name + ".parts")
    slow = FEW_ROWS + "; import time; from instructjax.cli import table_run; "
    slow += "told = table_run.Parts.add; "
    slow += "table_run.Parts.add = lambda *a: (told(*a), time.sleep(1))"
    for count, victim, kept in ((4, 2, 1), (2, 0, 3)):
        together = start(command(data, out), count=count, before=slow)
        together.wait_for(lambda kept=kept: len(list(parts.glob("*.note"))) >= kept)
        killed = together.signal(victim, signal.SIGKILL)
        for number, end in enumerate(together.ends()):
            if number != victim:
                assert end.code == 1 and end.when - killed < 10, end
                assert end.errors == [f"error: process {victim} is gone: its connection was closed"]
        assert kept <= len(list(parts.glob("*.note"))) < 6
    (end,) = start(command(data, out), count=1, devices=4, before=FEW_ROWS).ends()
    assert end.code == 0 and "going on after" in end.err
    assert read_bytes(out) == read_bytes(alone)


@pytest.mark.slow
def test_processes_with_other_devices_are_refused(start, data, tmp_path):
    words = ["score", data, "--out", tmp_path / "o.csv", "--model", TINY]
    other = {1: "import os; os.environ['JAX_NUM_CPU_DEVICES'] = '2'"}
    for end in start(words, devices=1, before=other).ends():
        assert end.code == 2, end
        assert "devices of a process is 2 x cpu in process 1 and 1 x cpu in" in end.errors[0]


@pytest.mark.slow
def test_rank_by_two_processes(start, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": f"Say {n}.", "output": ["a", "bc", f"{n}"], "answer": n % 3}
        for n in range(30)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = [tmp_path / f"{name}.jsonl" for name in ("one", "two")]
    options = ["--model", str(TINY), "--normalization", "pmi"]
    assert main(["rank", str(file), "--out", str(tables[0]), *options]) == 0
    for end in start(["rank", file, "--out", tables[1], *options]).ends():
        assert end.code == 0, end.err
    assert tables[0].read_bytes() == tables[1].read_bytes()


@pytest.mark.slow
def test_processes_with_other_data_are_refused(start, data, tmp_path):
    """They would score other rows than process 0 thinks."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "rows.jsonl").write_text(data.read_text().replace("Say 3", "Say 4"))
    before = "import os; os.chdir({!r})"
    together = start(
        ["score", "rows.jsonl", "--out", tmp_path / "o.csv", "--model", TINY],
        before={0: before.format(str(tmp_path)), 1: before.format(str(other))},
    )
    first, second = together.ends()
    assert first.code == second.code == 2
    for end in (first, second):
        assert "error: processes would do different things: data rows.jsonl is" in end.errors[0]
        assert "in process 1 and " in end.errors[0] and "in process 0; give all" in end.errors[0]
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.slow
def test_processes_with_another_mesh_are_refused_before_they_compute(start, data, tmp_path):
    words = ["score", data, "--out", tmp_path / "o.csv", "--model", TINY, "--mesh", "data=-1"]
    other = "import sys; sys.argv[sys.argv.index('data=-1')] = 'tensor=-1'"
    first, second = start(words, before={1: other}).ends()
    assert first.code == second.code == 2
    for end in (first, second):
        assert "mesh is tensor=-1 in process 1 and data=-1 in process 0" in end.errors[0]


@pytest.mark.slow
def test_processes_with_other_tables_or_files_are_refused(start, data, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(data.read_text())
    words = ["score", tmp_path / "here", "--out", tmp_path / "o.csv", "--model", TINY]
    other = "import sys; sys.argv[sys.argv.index({!r})] = {!r}".format
    for before, says in (
        (other(str(tmp_path / "o.csv"), str(tmp_path / "p.csv")), "--out is "),
        (other(str(tmp_path / "here"), str(tmp_path / "there")), " is missing in process 1 and "),
    ):
        for end in start(words, before={1: before}).ends():
            assert end.code == 2 and says in end.errors[0], end
