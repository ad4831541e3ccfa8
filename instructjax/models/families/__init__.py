"""Families of models that can be loaded, one small file each.

A further family is a further file that defines a `Family`, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.errors import ModelError
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.llama import LLAMA

__all__ = ["FAMILIES", "Family", "TensorRule", "family_for_gguf", "family_for_hf"]

FAMILIES: tuple[Family, ...] = (LLAMA,)


def family_for_hf(config: Mapping[str, Any], file: Path) -> Family:
    """The family of a Hugging Face configuration.

    Args:
      config: the dict of a config.json.
      file: that file, for messages.

    Raises:
      ModelError: no family covers its `model_type` and `architectures`.

    >>> config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    >>> family_for_hf(config, Path("config.json")).model_type
    'llama'
    """
    model_type, architectures = config.get("model_type"), config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelError(f"`architectures` = {architectures!r} is not a list", file=file)
    for family in FAMILIES:
        known = [name for name in architectures if name in family.architectures]
        if model_type == family.model_type and (known or not architectures):
            return family
        if model_type is None and known:
            return family
    supported = ", ".join(f"{f.model_type} ({f.architectures[0]})" for f in FAMILIES)
    raise ModelError(
        f"model_type {model_type!r} with architectures {architectures!r} is not supported",
        file=file,
        remedy=f"supported: {supported}",
    )


def family_for_gguf(architecture: object, file: Path) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
      ModelError: no family covers it.
    """
    for family in FAMILIES:
        if architecture == family.gguf_architecture:
            return family
    supported = ", ".join(f.gguf_architecture for f in FAMILIES)
    raise ModelError(
        f"GGUF architecture {architecture!r} is not supported",
        file=file,
        remedy=f"supported: {supported}",
    )
