"""From a decoder's configuration back to a config.json: what `config_from_hf` reads, written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from instructjax.errors import ModelError
from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family
from instructjax.models.families.to_hf_fields import ACTIVATIONS, FIELDS, rope_to_hf


def config_to_hf(family: Family, config: DecoderConfig) -> dict[str, Any]:
    """The object of a config.json, in the spelling that all versions of transformers read.

    Args:
      family: of the configuration.
      config: what is written.

    Raises:
      ModelError: the family's files have no words for it; nothing is written that would be read
        as another model.

    >>> from instructjax.models.families import FAMILIES
    >>> config = DecoderConfig(family="llama", vocab_size=8, hidden_size=8, intermediate_size=8,
    ...     num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, norm_eps=1e-5, max_positions=16)
    >>> config_to_hf(FAMILIES[0], config)["num_key_value_heads"]
    1
    """
    values = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        # Left out, transformers takes those of the published models, beyond smaller vocabularies.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "hidden_act": ACTIVATIONS[config.activation],
        **rope_to_hf(config),
        **FIELDS[family.model_type](config),
    }
    read = family.config_from_hf(values, Path("config.json"))
    for field in dataclasses.fields(DecoderConfig):
        wanted, found = getattr(config, field.name), getattr(read, field.name)
        if not _alike(wanted, found):
            raise ModelError(
                f"a config.json of model_type {family.model_type!r} cannot say "
                f"{field.name} = {wanted!r}"
            )
    return values


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers but for rounding: some are written as powers or inverses."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        names = (field.name for field in dataclasses.fields(one))
        return all(_alike(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one == other
