"""A Hugging Face folder: what its config.json says, and its weights, open and checked."""

from __future__ import annotations

from pathlib import Path

from instructjax.models.checkpoints.params import check_tensors
from instructjax.models.checkpoints.safetensors import SafetensorsFolder, read_json
from instructjax.models.config import DecoderConfig
from instructjax.models.families import Family, family_for_hf
from instructjax.models.families.quantization import read_quantization


def open_folder(folder: Path) -> tuple[Family, DecoderConfig, SafetensorsFolder]:
    """The family, the configuration and the weights of a folder; no tensor has been read yet.

    Raises:
      ModelError: an architecture or an option that is not supported, a damaged file, a tensor that
        is missing, left over or of another shape.
    """
    file = folder / "config.json"
    values = read_json(file)
    family = family_for_hf(values, file)
    config = family.config_from_hf(values, file)
    weights = SafetensorsFolder(
        folder, family.all_renames, read_quantization(values, file), family.stacks
    )
    check_tensors(family, config, weights)
    return family, config, weights
