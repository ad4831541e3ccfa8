"""Families of models that can be loaded, one small file each.

A further family is a further file that defines a `Family`, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructjax.errors import ModelError
from instructjax.models.config import DecoderConfig
from instructjax.models.families.cohere import COHERE, COHERE2
from instructjax.models.families.deepseek import DEEPSEEK_V3
from instructjax.models.families.family import Family, TensorRule
from instructjax.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from instructjax.models.families.gguf_readers import READERS
from instructjax.models.families.gguf_tensors import gguf_rules
from instructjax.models.families.gpt2 import GPT2
from instructjax.models.families.gpt_neox import GPT_NEOX
from instructjax.models.families.gpt_oss import GPT_OSS
from instructjax.models.families.granite import GRANITE
from instructjax.models.families.llama import LLAMA
from instructjax.models.families.mistral import MINISTRAL, MISTRAL
from instructjax.models.families.mixtral import MIXTRAL
from instructjax.models.families.olmo import OLMO2, OLMO3, OLMOE
from instructjax.models.families.phi import PHI3
from instructjax.models.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from instructjax.models.families.smollm3 import SMOLLM3
from instructjax.models.families.stablelm import STABLELM

__all__ = [
    "FAMILIES",
    "GGUF_ARCHITECTURES",
    "Family",
    "TensorRule",
    "family_for_gguf",
    "family_for_hf",
    "family_of",
]

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    QWEN2,
    QWEN3,
    MISTRAL,
    MINISTRAL,
    SMOLLM3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    OLMO2,
    OLMO3,
    PHI3,
    GRANITE,
    GPT_NEOX,
    GPT2,
    STABLELM,
    COHERE,
    COHERE2,
    MIXTRAL,
    QWEN3_MOE,
    OLMOE,
    GPT_OSS,
    DEEPSEEK_V3,
)


# What `general.architecture` says, and the family.
GGUF_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "granite": "granite",
    "command-r": "cohere",
    "cohere2": "cohere2",
    "gptneox": "gpt_neox",
    "gpt2": "gpt2",
    "stablelm": "stablelm",
    "smollm3": "smollm3",
    "phi3": "phi3",
    "gpt-oss": "gpt_oss",
    "deepseek2": "deepseek_v3",
    "mistral3": "mistral",
}
# What llama.cpp's converter does to a family's tensors.
_LAYOUTS: Mapping[str, dict[str, Any]] = {
    "mixtral": {"permuted": True},
    "mistral": {"permuted": True},
    "granite": {"permuted": True},
    "smollm3": {"permuted": True},
    "gpt_oss": {"names": {"mlp_norm": "post_attention_norm"}},
    "deepseek_v3": {"names": {"attention.q_norm": "attn_q_a_norm"}},
    "gemma": {"norm_offset": 1.0},
    "gemma2": {"norm_offset": 1.0},
    "gemma3_text": {"norm_offset": 1.0},
}


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


def family_of(config: DecoderConfig) -> Family:
    """The family that a configuration names.

    Raises:
      ModelError: there is none of that name.
    """
    for family in FAMILIES:
        if family.model_type == config.family:
            return family
    raise ModelError(f"there is no family {config.family!r}")


def family_for_gguf(metadata: Mapping[str, Any], file: Path) -> Family:
    """The family of a GGUF file's `general.architecture`; some hold two.

    Raises:
      ModelError: no family covers it.
    """
    architecture = metadata.get("general.architecture")
    named = GGUF_ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if named is None:
        raise ModelError(
            f"GGUF architecture {architecture!r} is not supported",
            file=file,
            remedy=f"supported: {', '.join(GGUF_ARCHITECTURES)}",
        )
    if named == "llama" and metadata.get("llama.expert_count"):
        named = "mixtral"
    if named == "olmo2" and metadata.get("olmo2.attention.sliding_window"):
        named = "olmo3"
    family = next(family for family in FAMILIES if family.model_type == named)
    if named == "llama":
        return family
    rules = gguf_rules(family.tensors, **_LAYOUTS.get(named, {}))
    # Factors are read beforehand, for the configuration.
    factors = r"rope_factors_(long|short)\.weight" if named == "phi3" else r"rope_freqs\.weight"
    return replace(
        family,
        gguf_tensors=rules,
        config_from_gguf=READERS[named],
        harmless={**family.harmless, "gguf": (factors,)},
    )
