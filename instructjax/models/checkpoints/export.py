"""A model as a Hugging Face folder, whatever it was read from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flax import nnx

from instructjax.errors import ModelError, UsageError, remedy_for_writing
from instructjax.models.checkpoints.hf_tensors_out import hf_entries
from instructjax.models.checkpoints.hf_tokenizer_out import write_json, write_tokenizer
from instructjax.models.checkpoints.safetensors_out import Entry, write_entries
from instructjax.models.families import family_of
from instructjax.models.families.to_hf import config_to_hf
from instructjax.models.model import Model

DTYPES = ("float32", "bfloat16", "float16")


def export_folder(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a folder that transformers, llama.cpp's converter and `load_model` read.

    Weights, config.json, generation_config.json with the ids that end a response, the tokenizer,
    and the chat template that was used. The folder is there when all of it is, or not at all.

    Args:
      model: what is written.
      folder: its place, where nothing is yet, or what `replace` is for.
      dtype: of the weights: "float32", "bfloat16" or "float16"; by default the model's own, so
        that no bit is lost.
      max_shard_bytes: weights beyond so many go into further files; a tensor is never cut.
      replace: a folder that is there gives way when the new one is whole.
      progress: is told the bytes written so far, and of how many.

    Returns:
      The folder.

    Raises:
      UsageError: the folder exists, cannot be made, or another dtype.
      ModelError: a family's files have no words for the model, or a number that float16 cannot
        hold.
    """
    folder = Path(folder).expanduser()
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", remedy=f"one of {', '.join(DTYPES)}")
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes = {max_shard_bytes} is not positive")
    if not replace:
        check_new_folder(folder)
    family = family_of(model.config)
    config = config_to_hf(family, model.config)
    params = nnx.to_pure_dict(model.params)
    shards = _shards(hf_entries(family, model.config, params, dtype), max_shard_bytes)
    total, written = sum(entry.num_bytes for shard in shards for entry in shard), 0

    def done(num_bytes: int) -> None:
        nonlocal written
        written += num_bytes
        progress(written, total)

    try:
        with new_folder(folder, replace=replace) as staged:
            staged.mkdir()
            ids = _special_ids(model)
            kind = {"torch_dtype": dtype or model.dtype}
            write_json(staged / "config.json", {**config, **ids, **kind})
            write_json(staged / "generation_config.json", {"_from_model_config": True, **ids})
            write_tokenizer(
                model.tokenizer,
                staged,
                max_positions=model.config.max_positions,
                family=model.config.family,
            )
            _write_shards(staged, shards, total, done)
    except OSError as error:
        raise ModelError(
            f"cannot be written ({error.strerror or error})",
            file=folder,
            remedy=remedy_for_writing(error),
        ) from error
    return folder


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Gives a place to make a folder at, which becomes `folder` at the end of the block.

    If the block fails, nothing is left of it, and a folder that it would have replaced stands.

    Raises:
      UsageError: by then there is something at `folder`.
      OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        yield staged / "whole"
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        check_new_folder(folder)
        os.rename(staged / "whole", folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """See that there is nothing in the folder's place.

    Raises:
      UsageError: there is.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError("exists already", file=folder, remedy="give the name of a new folder")


def _special_ids(model: Model) -> dict[str, Any]:
    tokenizer = model.tokenizer
    eos: Any = list(tokenizer.eos_ids)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos[0] if len(eos) == 1 else eos}
    name = (tokenizer.special_tokens or {}).get("pad_token")
    padding = None if name is None else tokenizer.backend.token_to_id(name)
    # A token added to pad with may have no row, and transformers refuses a padding row that is none
    # of the embedding's. The tokenizer keeps it.
    beyond = padding is not None and padding >= model.config.vocab_size
    ids["pad_token_id"] = None if beyond else padding
    return {name: value for name, value in ids.items() if value not in (None, [])}


def _shards(entries: Iterable[Entry], max_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _write_shards(
    folder: Path, shards: list[list[Entry]], total: int, done: Callable[[int], None]
) -> None:
    if len(shards) == 1:
        write_entries(folder / "model.safetensors", shards[0], done=done)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_entries(folder / name, shard, done=done)
        weight_map |= {entry.name: name for entry in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
