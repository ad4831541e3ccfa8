"""LoRA's matrices in a folder of their own, as PEFT reads it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32
from safetensors.numpy import save_file

from instructjax.finetuning.partition import name_param
from instructjax.models import Model
from instructjax.models.checkpoints.hf_tensors_out import Place, put_part
from instructjax.models.config import DecoderConfig
from instructjax.models.families import family_of
from instructjax.models.lora import LoraConfig
from instructjax.models.spec import parse_spec

_LORA = re.compile(r"(.+)\.lora_([ab])")

# A [layers, in, rank] and B [layers, rank, out] of a projection.
_Pair = dict[str, Float32[np.ndarray, "layers _ _"]]


def write_adapter(
    model: Model, trainable: nnx.State, config: LoraConfig, folder: Path, *, base: str
) -> None:
    r"""Writes adapter_config.json and adapter_model.safetensors, in float32.

    Projections that a family stores as one matrix (queries, keys and values of GPT-2, GPT-NeoX and
    Phi-3; Phi-3's gates and ups) become one pair of matrices of the ranks' sum, which is exact:
    with \(A = (A_1, A_2)\) side by side, each rows' \(B\) is zero but for its own part's columns.
    The dense layers and the shared expert of DeepSeek-V3 need PEFT 0.17 or later.

    Args:
      model: the base.
      trainable: A [layers, in, rank] and B [layers, rank, out] of every projection.
      config: their scale.
      folder: is made.
      base: the spec that the base was loaded from. PEFT looks for it by its hub id or, absolute,
        its folder's path; of another, a README.md says that it has to be exported first.
    """
    pairs: dict[str, _Pair] = {}
    for path, leaf in jax.tree.leaves_with_path(trainable):
        if found := _LORA.fullmatch(name_param(path)):
            pairs.setdefault(found[1], {})[found[2]] = np.asarray(leaf, np.float32)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    transposed = False
    for name, parts in _stored(model.config, pairs).items():
        a, b = _join(parts, pairs, model.config)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        # What stands after the number of the layer: PEFT goes by the ends of names.
        ranks[re.split(r"\.\d+\.", name)[-1]] = len(a)
        transposed = transposed or not parts[0][0].transpose
    wider = {name: rank for name, rank in ranks.items() if rank != config.rank}
    # In a model of experts PEFT takes modules called `gate_proj` for those of the experts; by their
    # weights, those of dense layers and of a shared expert are found as what they are.
    beside = [name for name in ranks if model.config.num_experts and name.startswith("mlp.")]
    folder.mkdir(parents=True)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name_base(base) or model.name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "rank_pattern": wider,
        "alpha_pattern": {name: _alpha(config, rank) for name, rank in wider.items()},
        "use_rslora": config.rank_stabilized,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "target_modules": sorted(ranks.keys() - set(beside)),
        **({"target_parameters": sorted(f"{name}.weight" for name in beside)} if beside else {}),
    }
    text = json.dumps(described, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if name_base(base) is None:
        (folder / "README.md").write_text(f"{explain_base(base)}\n", encoding="utf-8")


def name_base(spec: str) -> str | None:
    """By what PEFT finds a base: a hub id, a folder's absolute path; None for what it cannot read.

    >>> name_base("HuggingFaceTB/SmolLM2-135M"), name_base("smollm2-135m-instruct")
    ('HuggingFaceTB/SmolLM2-135M', None)
    """
    parsed = parse_spec(spec)
    if parsed.kind == "folder":
        return str(Path(parsed.target).expanduser().resolve())
    return parsed.target if parsed.kind == "hub" else None


def explain_base(spec: str) -> str:
    """What to do before PEFT can load an adapter of such a base."""
    return (
        f"PEFT cannot read this adapter's base, {spec}, itself. Write it as a folder, "
        f"`instructjax convert {shlex.quote(spec)} --out FOLDER`, load that with transformers, and "
        "give it to `PeftModel.from_pretrained` with this adapter."
    )


def _alpha(config: LoraConfig, rank: int) -> float:
    """The alpha that gives a pair of another rank the same scale.

    >>> _alpha(LoraConfig(rank=4, alpha=8.0), 12)
    24.0
    """
    return config.scale * (math.sqrt(rank) if config.rank_stabilized else rank)


def _stored(config: DecoderConfig, pairs: Mapping[str, Any]) -> dict[str, list[Place]]:
    """The stored matrices that have LoRA, without ".weight", and what they are made of."""
    places: dict[str, list[Place]] = {}
    for rule in family_of(config).rules(config):
        if rule.param.removesuffix(".kernel") in pairs:
            for index, layer in enumerate(rule.layers(config)):
                name = rule.name("hf", layer).removesuffix(".weight")
                places.setdefault(name, []).append((rule, index, 0))
    return places


def _join(
    parts: list[Place], pairs: Mapping[str, _Pair], config: DecoderConfig
) -> tuple[Float32[np.ndarray, "rank inner"], Float32[np.ndarray, "outer rank"]]:
    """A and B of a stored matrix, as PyTorch has matrices: [out, in]."""
    every = [(rule, pairs[rule.param.removesuffix(".kernel")], at) for rule, at, _ in parts]
    a = np.concatenate([pair["a"][at].T for _, pair, at in every])
    rule = parts[0][0]
    outer = rule.stored_shape(config)[0 if rule.transpose else 1]
    b = np.zeros((outer, len(a)), np.float32)
    start = 0
    for rule, pair, at in every:
        stop = start + pair["a"].shape[-1]
        # B has the rows of the matrix, whichever way the matrix is stored.
        rows = dataclasses.replace(rule, transpose=True, fused_axis=0)
        put_part(b[:, start:stop], pair["b"][at], rows, config)
        start = stop
    return np.ascontiguousarray(a), b
