"""The folder of a run: what was run, on what, with which data; and whether to go on with it."""

from __future__ import annotations

import dataclasses
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
from instructjax.models.spec import parse_spec
from instructjax.prompts.options import LAYOUT_SUFFIXES
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
_RENAMES = "renames"
_OURS = (CONFIG, ENVIRONMENT, MANIFEST, METRICS, CHECKPOINTS, MODEL, DONE, TENSORBOARD)
_OURS += ("data.rejects.jsonl", "wandb_id", "wandb", "lock", "shared", _RENAMES)
# What may change between a run and its continuation: nothing that the parameters depend on.
_FREE = {field.name for field in fields(RunOptions)} - {"eval_every", "patience"}
_FREE |= {"model", "data", "eval_data", "layout"}  # described by what they hold

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers")


def describe_run(config: FinetuneConfig, model: Any, prompts: Mapping[str, str]) -> dict[str, str]:
    """Everything that the parameters of a run depend on, as text by name."""
    names = [field.name for field in fields(config) if field.name not in _FREE]
    described = {name: _show(getattr(config, name)) for name in sorted(names)}
    prompts = {**prompts, "layout": Path(prompts["layout"]).name}
    return {
        **described,
        **{f"prompt {name}": value for name, value in prompts.items()},
        "model_fingerprint": model.fingerprint,
        "weights": model.weights,
        **_describe_sets("data", config.data),
        **_describe_sets("eval_data", config.eval_data),
    }


def _describe_sets(field: str, paths: tuple[Path, ...]) -> dict[str, str]:
    """What the files of data sets hold, by the names that they have within each."""
    described = {}
    for number, path in enumerate(paths, 1):
        files = find_files(path)
        within = path if path.is_dir() else path.parent
        names = [f"{field} {number}, {file.relative_to(within)}" for file in files]
        described |= dict(zip(names, describe_files(files).values(), strict=True))
    return described


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
      UsageError: it holds other things, or cannot be written, or folders cannot be renamed there.
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
    if not (out / MANIFEST).exists() and {*os.listdir(out)} - {*_OURS, *names_staged(out)}:
        raise UsageError(
            "holds files that are not of a run", file=out, remedy="give a new folder as --out"
        )
    _check_renames(out)


def _check_renames(out: Path) -> None:
    """A checkpoint and the model are there when their folder gets its name. Buckets may have none:
    where they are mounted, a folder may be no more than how the names of its files begin."""
    trial = out / _RENAMES
    with blaming(out):
        shutil.rmtree(trial, ignore_errors=True)
        (trial / "one").mkdir(parents=True)
        (trial / "one" / "file").write_text("some")
    try:
        os.rename(trial / "one", trial / "other")
    except OSError as error:
        raise UsageError(
            f"folders cannot be renamed there ({error.strerror}), as those of checkpoints are",
            file=out,
            remedy="give an --out on a disk, on Filestore or Lustre, or in a bucket with a "
            "hierarchical namespace",
        ) from None
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def rows_of_earlier(config: FinetuneConfig) -> int | None:
    """Rows of a micro-batch of the run in the folder; None if there is none, or it is to go."""
    out = config.out
    with blaming(out):
        if not (out / MANIFEST).exists() or (config.overwrite and (out / DONE).exists()):
            return None
        earlier = read_json(out / MANIFEST)
    rows = earlier.get("rows") if isinstance(earlier, dict) else None
    return int(rows) if isinstance(rows, str) and rows.isdecimal() else None


def starts_afresh(config: FinetuneConfig, described: Mapping[str, str]) -> bool:
    """Whether what an earlier run has left is to go; else this one goes on with it.

    It goes if it is of another run that has learned nothing, and, with `overwrite`, if it is of
    another one or complete.

    Raises:
      UsageError: it is of another run, and is to stay; it says in what they differ. Or an earlier
        version has begun it, and it is not complete.
      DataError: the files cannot be read.
    """
    out = config.out
    with blaming(out):
        if not (out / MANIFEST).exists():
            return False
        earlier = read_json(out / MANIFEST)
        described = _describe_for(config, earlier, described)
        if config.overwrite:
            return earlier != described or (out / DONE).exists()
        if earlier != described and not _has_learned(out):
            return True
    check_same(earlier, described, out)
    return False


def _describe_for(
    config: FinetuneConfig, earlier: Any, described: Mapping[str, str]
) -> Mapping[str, str]:
    """What an earlier run is compared with: without choices that its version did not have, if it is
    complete."""
    if not isinstance(earlier, dict):
        return described
    missing = [field.name for field in fields(config) if field.name in {*described} - {*earlier}]
    if not missing:
        return described
    if (config.out / DONE).exists():
        return {name: value for name, value in described.items() if name not in missing}
    if _has_learned(config.out):
        raise UsageError(
            f"an earlier version of instructjax began the run, which had no {', '.join(missing)}; "
            "this one would go on with other rows",
            file=config.out,
            remedy="end it with that version, or give another --out",
        )
    return described


def begin(config: FinetuneConfig, described: Mapping[str, str], *, afresh: bool) -> None:
    """Writes what the run is.

    Args:
      config: of the run.
      described: see `describe_run`.
      afresh: drop what an earlier one has left.

    Raises:
      DataError: the files cannot be written.
    """
    out = config.out
    with blaming(out):
        if afresh:
            _clear(out)
        write_whole(out / CONFIG, write_config(_rooted(config)))
        write_whole(out / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")
        write_whole(out / MANIFEST, json.dumps(dict(described), indent=2) + "\n")


def is_complete(config: FinetuneConfig) -> bool:
    """Whether an earlier run has ended, and what it was to export is there.

    Raises:
      UsageError: it has ended, the export is not there, and neither are checkpoints to make it of.
    """
    out = config.out
    if not (out / DONE).exists():
        return False
    done = read_json(out / DONE)
    kept = config.export_choice == "none" or (out / MODEL).is_dir()
    if kept and isinstance(done, dict) and done.get("export") == describe_export(config):
        return True
    if not _find_checkpoints(out):
        raise UsageError(
            "the run is complete, and its checkpoints, of which another export could be made, "
            "are gone",
            file=out,
            remedy="export as it did, or start afresh with --overwrite",
        )
    return False


def describe_export(config: FinetuneConfig) -> dict[str, Any]:
    """What comes out at the end, as JSON."""
    return {
        "parameters": config.export_choice,
        "dtype": config.export_dtype or "float32",
        "adapter": config.adapter,
    }


def _has_learned(out: Path) -> bool:
    metrics = out / METRICS
    logged = metrics.exists() and metrics.stat().st_size > 0
    return logged or bool(_find_checkpoints(out)) or (out / DONE).exists()


def _find_checkpoints(out: Path) -> list[Path]:
    return [path for path in (out / CHECKPOINTS).glob("*") if path.name.isdecimal()]


def names_staged(out: Path) -> list[str]:
    """Folders that an export was making when it was killed."""
    return [path.name for path in out.glob(f".{MODEL}.part*")]


def _rooted(config: FinetuneConfig) -> FinetuneConfig:
    """With paths that hold from every folder."""
    layout = Path(config.layout)
    own = layout.suffix in LAYOUT_SUFFIXES

    return dataclasses.replace(
        config,
        data=tuple(path.resolve() for path in config.data),
        eval_data=tuple(path.resolve() for path in config.eval_data),
        out=config.out.resolve(),
        model=parse_spec(config.model).rooted(),
        layout=str(layout.resolve()) if own else config.layout,
    )


def _clear(out: Path) -> None:
    # What says that there is a run goes last, so that a kill in between leaves one to clear. The
    # rejects are this run's, which has read its data.
    kept = (MANIFEST, "lock", "data.rejects.jsonl")
    for path in [out / name for name in (*_OURS, *names_staged(out)) if name not in kept]:
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
