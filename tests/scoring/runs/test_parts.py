"""Parts of a table on disk: a crash at any step, damage, other runs, other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructjax.errors import DataError, UsageError
from instructjax.scoring.runs.folder import count_kept, folder_of, is_finished
from instructjax.scoring.runs.lock import hold_lock
from instructjax.scoring.runs.manifest import describe_files
from instructjax.scoring.runs.parts import Parts, open_parts

METADATA = {"model": "tiny", "dtype": "float32"}
INPUTS = {"data a.jsonl": "10 bytes, sha256 00"}
ROOT = Path(__file__).parents[3]


def make_record(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "candidate": 0,
        "context": "cz",
        "instruction_id": None,
        "input_id": None,
        "task": "t\n,",
        "log_prob": -0.1,
        "num_tokens": 1,
        "num_bytes": 1,
        "log_prob_per_token": -0.1,
        "bits_per_byte": None,
        "greedy": True,
        "status": "ok",
        "token_ids": [1],
        "token_log_probs": [-0.5],
    }


def add(parts: Parts, first: int, stop: int) -> None:
    records = [make_record(f"a:{n}") for n in range(first, stop)]
    parts.add(first, stop, records, {"first": first})


def stop_after(out: Path, count: int, **changes: Any) -> None:
    """A run of parts of 3 rows that ends with an exception."""
    metadata, inputs = {**METADATA, **changes}, INPUTS
    with pytest.raises(ZeroDivisionError), open_parts(out, metadata, inputs) as parts:
        for first in range(0, 3 * count, 3):
            if first not in parts.done:
                add(parts, first, first + 3)
        raise ZeroDivisionError


def complete(out: Path, *, overwrite: bool = False, **changes: Any) -> list[int]:
    """Does what is left of 4 parts; returns the parts that were there."""
    with open_parts(out, {**METADATA, **changes}, INPUTS, overwrite=overwrite) as parts:
        there = sorted(parts.done)
        for first in range(0, 12, 3):
            if first not in parts.done:
                add(parts, first, first + 3)
        assert [note["first"] for note in parts.read_notes()] == [0, 3, 6, 9]
        parts.finish()
    return there


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_a_stopped_run_goes_on_and_ends_as_if_undisturbed(tmp_path: Path, format: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    complete(tmp_path / "a" / f"s.{format}")
    out = tmp_path / "b" / f"s.{format}"
    stop_after(out, 2)
    assert not out.exists() and count_kept(out) == 6
    stop_after(out, 3)
    assert complete(out) == [0, 3, 6]
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    assert count_kept(out) == 0


def test_a_table_of_parts_is_the_table_written_at_once(tmp_path: Path) -> None:
    from instructjax.scoring import open_table, read_scores

    for format in ("parquet", "jsonl", "csv"):
        complete(tmp_path / f"a.{format}")
        with open_table(tmp_path / f"b.{format}", METADATA) as put:
            for n in range(12):
                put(make_record(f"a:{n}"))
        left, right = (read_scores(tmp_path / f"{name}.{format}") for name in "ab")
        assert left.equals(right, check_metadata=True)
        if format != "parquet":
            assert (tmp_path / f"a.{format}").read_bytes() == (
                tmp_path / f"b.{format}"
            ).read_bytes()


# Forks a run that dies, as by kill -9, at the n-th step that changes the disk; then one that does
# not; and looks at what is there. Now and then two die. No destructor and no handler runs.
_CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from instructjax.data import Reject, RejectsFile
from instructjax.errors import UsageError
from instructjax.scoring.runs.parts import open_parts
from test_parts import INPUTS, METADATA, add, read_all

out = Path(sys.argv[1])
steps = ("replace", "fsync", "unlink", "rmdir", "mkdir", "open")
real = {name: getattr(os, name) for name in steps}

def arm(number):
    count = 0
    def make(name):
        def step(*args, **options):
            nonlocal count
            count += 1
            if count > number:
                os._exit(9)
            return real[name](*args, **options)
        return step
    for name in steps:
        setattr(os, name, make(name))

def run(number):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if number is not None:
            arm(number)
        try:
            with open_parts(out, METADATA, INPUTS) as parts:
                if not parts.complete:
                    for first in range(0, 6, 3):
                        if first not in parts.done:
                            add(parts, first, first + 3)
                    with RejectsFile(out) as rejects:
                        for note in parts.read_notes():
                            rejects.write(Reject(file="a", row=str(note["first"]), reason="no"))
                    parts.finish()
        except UsageError as error:
            # The run had put its table in place, tidied up, and died before it could say so.
            os._exit(3 if "exists already" in str(error) else 1)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def tidy():
    for file in sorted(out.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()

assert run(None) == 0
wanted = read_all(out.parent)
tidy()
number, finished = 0, False
while not finished:
    for second in (None, 2 + number // 2) if number % 4 == 0 else (None,):
        code = run(number)
        assert code in (0, 9), code
        finished = code == 0
        if second is not None and not finished:
            code = run(second)
            assert code in (0, 3, 9), (number, second, code)
        code = run(None)
        assert code in (0, 3), (number, second, code)
        folder = out.with_name(out.name + ".parts")
        if folder.is_dir():
            assert code == 3 and {f.name for f in folder.iterdir()} <= {"lock"}, number
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        assert read_all(out.parent) == wanted, (number, second)
        tidy()
    number += 1
print(number)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_law_8_a_crash_at_any_step_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _CRASH,
            folder / "s.csv",
            Path(__file__).parent,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout) > 30


@pytest.mark.parametrize("suffix", ["rows", "note"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "flip", "gone", "empty"])
def test_a_damaged_part_is_made_again(tmp_path: Path, suffix: str, damage: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    complete(tmp_path / "a" / "s.parquet")
    out = tmp_path / "b" / "s.parquet"
    stop_after(out, 4)
    file = folder_of(out) / f"000000000003-000000000006.{suffix}"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "flip":
        # Of a note, the digest; of rows, a bit that Parquet itself would not notice.
        at = 15 if suffix == "note" else len(data) // 2
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    else:
        file.write_bytes({"cut": data[:-20], "zeros": bytes(len(data)), "empty": b""}[damage])
    assert complete(out) == [0, 6, 9]
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_a_run_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    stop_after(out, 1)
    before = read_all(folder_of(out))
    with pytest.raises(UsageError) as caught:
        complete(out, dtype="bfloat16", layout="plain")
    text = str(caught.value)
    assert "dtype was float32 and is bfloat16" in text
    assert "layout was not there and is plain" in text
    assert "model" not in text and "--overwrite" in text
    assert read_all(folder_of(out)).keys() == before.keys() and count_kept(out) == 3
    # Afresh on request, with nothing of the other run.
    assert complete(out, dtype="bfloat16", overwrite=True) == []
    assert json.loads((tmp_path / "s.csv.meta.json").read_text())["dtype"] == "bfloat16"


def test_overwriting_can_be_stopped_and_go_on(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    out.write_text("old")
    with pytest.raises(UsageError, match="exists already"):
        complete(out)
    assert not folder_of(out).exists()
    with (
        pytest.raises(ZeroDivisionError),
        open_parts(out, METADATA, INPUTS, overwrite=True) as parts,
    ):
        add(parts, 0, 3)
        raise ZeroDivisionError
    assert out.read_text() == "old"
    assert complete(out, overwrite=True) == [0]
    assert len(out.read_text().splitlines()) > 12


def test_a_damaged_manifest(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    stop_after(out, 1)
    (folder_of(out) / "manifest").write_text('{"format": 1, "ru')
    with pytest.raises(DataError, match="manifest.*damaged.*--overwrite"):
        complete(out)
    assert complete(out, overwrite=True) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    folder_of(out).mkdir()
    mine = folder_of(out) / "mine.txt"
    mine.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"mine\.txt is in it"):
            complete(out, overwrite=overwrite)
    assert read_all(folder_of(out)) == {"mine.txt": b"mine"}
    other = tmp_path / "t.csv"
    folder_of(other).write_text("a file")
    with pytest.raises(UsageError, match="not a folder"):
        complete(other)


def test_what_is_added_to_the_folder_later_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    stop_after(out, 1)
    (folder_of(out) / "mine.txt").write_text("mine")
    complete(out)
    assert out.exists() and read_all(folder_of(out)) == {"mine.txt": b"mine"}


def test_two_processes_at_once(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    hold = (
        "import sys, pathlib\nfrom instructjax.scoring.runs.lock import hold_lock\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "with hold_lock(p, of=p):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder_of(out) / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=rf"another process \({process.pid}\)"):
                complete(out, overwrite=overwrite)
        assert (folder_of(out) / "lock").exists()
        process.kill()
    # The dead process's lock file is still there, and in nobody's way.
    assert (folder_of(out) / "lock").read_text() == f"{process.pid}\n"
    assert complete(out) == []


def test_a_lock_whose_file_was_deleted_is_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "x" / "lock"
    with hold_lock(path, of=path):
        path.unlink()
        path.parent.rmdir()
        with hold_lock(path, of=path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_a_full_disk_keeps_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "s.jsonl"
    real = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device.*rows are kept") as caught:
        complete(out)
    assert caught.value.file == str(out)
    kept = count_kept(out)
    assert kept in (3, 6, 9) and not list(folder_of(out).glob("*.tmp"))
    monkeypatch.setattr(os, "fsync", real)
    assert len(complete(out)) == kept // 3


def test_a_run_that_ends_before_its_first_part_leaves_nothing(tmp_path: Path) -> None:
    stop_after(tmp_path / "s.csv", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    with pytest.raises(DataError, match="appeared"), open_parts(out, METADATA, INPUTS) as parts:
        add(parts, 0, 3)
        out.write_text("mine")
        parts.finish()
    assert out.read_text() == "mine" and count_kept(out) == 3
    assert not is_finished(out)


def test_data_files_are_told_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"abc")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_files([file]) == {f"data {file}": f"3 bytes, sha256 {sha}"}
    os.utime(file, (1, 1))
    assert describe_files([file]) == {f"data {file}": f"3 bytes, sha256 {sha}"}
