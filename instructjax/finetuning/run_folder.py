"""The folder of a run: what was run, on what, with which data; and whether to go on with it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from instructjax.data.files import find_files
from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.finetuning.config import FinetuneConfig, RunOptions
from instructjax.finetuning.config_file import write_config
from instructjax.scoring.metadata import installed_version
from instructjax.scoring.runs.manifest import check_same, describe_files, read_json
from instructjax.scoring.tables.disk import write_whole

CONFIG, ENVIRONMENT, MANIFEST, METRICS = (
    "config.toml",
    "environment.json",
    "run.json",
    "metrics.jsonl",
)
CHECKPOINTS, MODEL, DONE, TENSORBOARD = "checkpoints", "model", "done.json", "tensorboard"
_OURS = (CONFIG, ENVIRONMENT, MANIFEST, METRICS, CHECKPOINTS, MODEL, DONE, TENSORBOARD)
_OURS += ("data.rejects.jsonl", "wandb_id", "wandb", "model.part", "lock")
# What may change between a run and its continuation: nothing that the parameters depend on.
_FREE = {field.name for field in fields(RunOptions)} - {"eval_every", "patience"}

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")


def describe_run(config: FinetuneConfig, model: Any, prompts: Mapping[str, str]) -> dict[str, str]:
    """Everything that the parameters of a run depend on, as text by name."""
    names = [field.name for field in fields(config) if field.name not in _FREE]
    described = {name: _show(getattr(config, name)) for name in sorted(names)}
    files = [file for path in (*config.data, *config.eval_data) for file in find_files(path)]
    return {
        **described,
        **{f"prompt {name}": value for name, value in prompts.items()},
        "model_fingerprint": model.fingerprint,
        "weights": model.weights,
        **describe_files(files),
    }


def describe_environment() -> dict[str, Any]:
    """The machine and the versions that a run uses."""
    devices = jax.devices()
    return {
        "instructjax": installed_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "command": sys.argv,
        "devices": f"{devices[0].device_kind} x{len(devices)}",
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def make_folder(config: FinetuneConfig) -> None:
    """Makes the folder, if it is not there.

    Raises:
      UsageError: it holds other things, or cannot be written.
    """
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot be made ({error.strerror})", file=out, remedy="give another --out"
        ) from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError("cannot be written to", file=out, remedy="give another --out")
    if not (out / MANIFEST).exists() and set(os.listdir(out)) - set(_OURS):
        raise UsageError(
            "holds files that are not of a run", file=out, remedy="give a new folder as --out"
        )


def begin(config: FinetuneConfig, described: Mapping[str, str]) -> None:
    """Writes what the run is, or checks that an earlier one was the same.

    With `overwrite`, an earlier one that was another, or is complete, is dropped.

    Raises:
      UsageError: it was not; it says in what.
      DataError: the files cannot be read or written.
    """
    out = config.out
    with blaming(out):
        if (out / MANIFEST).exists():
            if config.overwrite and not _goes_on(out, described):
                _clear(out)
            else:
                check_same(read_json(out / MANIFEST), described, out)
        write_whole(out / CONFIG, write_config(config))
        write_whole(out / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")
        write_whole(out / MANIFEST, json.dumps(dict(described), indent=2) + "\n")


def _goes_on(out: Path, described: Mapping[str, str]) -> bool:
    return read_json(out / MANIFEST) == described and not (out / DONE).exists()


def _clear(out: Path) -> None:
    # What says that there is a run goes last, so that a kill in between leaves one to clear.
    for path in [out / name for name in _OURS if name not in (MANIFEST, "lock")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in out.glob("not_finite_step_*.safetensors"):
        path.unlink()
    (out / MANIFEST).unlink()


@contextmanager
def blaming(path: Path):
    """Errors of the system in the block as those of this file or folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot be written ({error.strerror or error})",
            file=path,
            remedy=f"{remedy_for_writing(error)} and run the same command again",
        ) from error


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
