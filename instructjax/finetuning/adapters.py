"""LoRA's matrices in a folder of their own, as PEFT reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from instructjax.errors import ModelError
from instructjax.finetuning.partition import name_param
from instructjax.models import Model
from instructjax.models.families import FAMILIES
from instructjax.models.lora import LoraConfig

_LORA = re.compile(r"(layers\..+)\.lora_([ab])")


def write_adapter(model: Model, trainable: nnx.State, config: LoraConfig, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, in float32.

    Args:
      model: the base, whose name PEFT will ask for.
      trainable: A [layers, in, rank] and B [layers, rank, out] of every projection.
      config: their scale.
      folder: is made.

    Raises:
      ModelError: the family stores a projection as part of a larger one, or transposed, so that
        PEFT has no matrix of the same meaning.
    """
    (family,) = (family for family in FAMILIES if family.model_type == model.config.family)
    rules = {rule.param: rule for rule in family.tensors if rule.when(model.config)}
    tensors: dict[str, np.ndarray] = {}
    modules: set[str] = set()
    for path, leaf in jax.tree.leaves_with_path(trainable):
        if not (found := _LORA.fullmatch(name_param(path))):
            continue
        rule = rules[f"{found[1]}.kernel"]
        if rule.fused or not rule.transpose or rule.interleaved:
            raise ModelError(
                f"{rule.hf} of the family {model.config.family} has no adapter of its own in PEFT",
                remedy="export the merged model: leave out --adapter",
            )
        for layer, matrix in enumerate(np.asarray(leaf, np.float32)):
            name = rule.name("hf", layer).removesuffix(".weight")
            which = found[2].upper()
            tensors[f"base_model.model.{name}.lora_{which}.weight"] = np.ascontiguousarray(matrix.T)
            modules.add(name.rpartition(".")[2])
    folder.mkdir(parents=True)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rank_stabilized,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
    text = json.dumps(described, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
