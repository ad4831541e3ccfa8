"""The tree of parameters as the tensors of a Hugging Face checkpoint: the rules read backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from instructjax.errors import ModelError
from instructjax.models.checkpoints.safetensors_out import Entry
from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Family, TensorRule

# Reads a layer of a parameter by its dotted path; of one that has no layers, number 0.
Read = Callable[[TensorRule, int], Shaped[np.ndarray, "*shape"]]
Place = tuple[TensorRule, int, int]


def hf_names(family: Family, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a Hugging Face checkpoint of this configuration.

    >>> from instructjax.models.families import FAMILIES
    >>> config = DecoderConfig(family="llama", vocab_size=8, hidden_size=6, intermediate_size=9,
    ...     num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, norm_eps=1e-5, max_positions=16)
    >>> hf_names(FAMILIES[0], config)["model.layers.0.self_attn.q_proj.weight"]
    (8, 6)
    """
    return {name: rule.stored_shape(config) for name, rule in family.names(config, "hf")}


def hf_entries(
    family: Family, config: DecoderConfig, params: Any, dtype: str | None = None
) -> Iterator[Entry]:
    """The tensors of a checkpoint, each made when it is asked for.

    Args:
      family: names and shapes.
      config: of the decoder.
      params: nested dict of arrays, layers stacked; a layer is brought to the host at a time.
      dtype: "float32", "bfloat16" or "float16"; None: as the parameters are. What a family keeps in
        float32 stays so.

    Raises:
      ModelError: while a tensor is made: a number is beyond the range of float16.
    """

    def read(rule: TensorRule, layer: int) -> Shaped[np.ndarray, "*shape"]:
        leaf = params
        for key in rule.param.split("."):
            leaf = leaf[key]
        return np.asarray(leaf[layer] if rule.stacked else leaf)

    def kind(rule: TensorRule) -> np.dtype:
        if rule.in_float32:
            return np.dtype(np.float32)
        named = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
        if dtype is not None:
            return named.get(dtype) or np.dtype(dtype)
        leaf = params
        for key in rule.param.split("."):
            leaf = leaf[key]
        return np.dtype(leaf.dtype)

    tensors: dict[str, list[Place]] = {}
    for rule in family.rules(config):
        for index, layer in enumerate(rule.layers(config)):
            for each in range(rule.count(config)):
                name = rule.name("hf", layer, each)
                tensors.setdefault(name, []).append((rule, index, each))
    for name, places in tensors.items():
        rule = places[0][0]
        yield Entry(
            name=name,
            shape=rule.stored_shape(config),
            dtype=kind(rule),
            make=partial(_make, name, places, config, read, kind(rule)),
        )


def _make(
    name: str, places: list[Place], config: DecoderConfig, read: Read, dtype: np.dtype
) -> Shaped[np.ndarray, "*shape"]:
    stored = np.empty(places[0][0].stored_shape(config), dtype)
    for rule, index, each in places:
        part = read(rule, index)
        put_part(stored, part[each] if rule.each else part, rule, config)
    if dtype == np.float16 and not np.isfinite(stored).all():
        raise ModelError(
            f"tensor {name} has numbers beyond the range of float16",
            remedy="write bfloat16 or float32",
        )
    return stored


def put_part(
    stored: Shaped[np.ndarray, "*shape"],
    part: Shaped[np.ndarray, "*part"],
    rule: TensorRule,
    config: DecoderConfig,
) -> None:
    """Write a parameter of one layer into the tensor that it is stored as, or a part of.

    Args:
      stored: is written to.
      part: as it is kept.
      rule: of the parameter.
      config: of the decoder.
    """
    part = part.T if rule.transpose else part
    if rule.num_rotary_heads(config, "hf"):
        # "HD", "JD": a number for every feature of every head
        whole = part.reshape(-1) if "D" in rule.dims else part
        part = _part_halves(whole, config.head_dim).reshape(part.shape)
    if rule.by_head:  # parts that alternate are no slice
        grid = stored.reshape(config.num_heads, len(rule.fused), -1, *stored.shape[1:])
        place = grid[:, rule.index]
    else:
        place = rule.part_of(stored, config) if rule.fused else stored
    with np.errstate(over="ignore"):
        place[...] = part.reshape(place.shape).astype(stored.dtype)


def _part_halves(
    rows: Shaped[np.ndarray, "rows ..."], head_dim: int
) -> Shaped[np.ndarray, "rows ..."]:
    """Put rotary pairs side by side: within each head, row i + h D/2 becomes row 2i + h."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
