"""A family of models as data: how its files spell a configuration and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from instructjax.models.config import DecoderConfig

Spelling = Literal["hf", "gguf"]


def _always(_: DecoderConfig) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """Where one tensor (or one a layer) of a checkpoint goes.

    Attributes:
      param: dotted path in the parameter tree.
      dims: the stored shape, outermost first, in letters: V vocabulary, E hidden, F
        intermediate, Q query heads times head width, K key-value heads times head width.
      hf, gguf: its name in either kind of file; "{layer}" stands for the layer's index.
      transpose: stored [out, in], kept [in, out].
      rotary_heads: for "query" and "key", GGUF stores the two halves of each head's rotary
        pairs interleaved; they are put back side by side, as Hugging Face has them.
      when: whether a configuration has this tensor at all.
    """

    param: str
    dims: str
    hf: str
    gguf: str
    transpose: bool = False
    rotary_heads: Literal["query", "key"] | None = None
    when: Callable[[DecoderConfig], bool] = _always

    @property
    def stacked(self) -> bool:
        """Whether every layer has one, stacked on a leading axis."""
        return "{layer}" in self.hf

    def name(self, spelling: Spelling, layer: int = 0) -> str:
        """The tensor's name in a file of that spelling."""
        return getattr(self, spelling).replace("{layer}", str(layer))

    def stored_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """The shape of one tensor as the checkpoint has it."""
        sizes = {
            "V": config.vocab_size,
            "E": config.hidden_size,
            "F": config.intermediate_size,
            "Q": config.num_heads * config.head_dim,
            "K": config.num_kv_heads * config.head_dim,
        }
        return tuple(sizes[letter] for letter in self.dims)

    def param_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """The shape of the parameter, the axis of layers included."""
        shape = self.stored_shape(config)
        shape = shape[::-1] if self.transpose else shape
        return (config.num_layers, *shape) if self.stacked else shape

    def num_rotary_heads(self, config: DecoderConfig, spelling: Spelling) -> int:
        """Heads whose rotary pairs are interleaved in such a file; 0 where none are."""
        if spelling == "hf" or self.rotary_heads is None:
            return 0
        return config.num_heads if self.rotary_heads == "query" else config.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of decoders: everything that differs between families' files.

    Attributes:
      model_type: Hugging Face's `model_type`.
      architectures: Hugging Face's class names that this family covers.
      gguf_architecture: `general.architecture` in GGUF files.
      config_from_hf: the configuration from the dict of a config.json. Arguments: the dict,
        the file (for messages).
      config_from_gguf: the configuration from GGUF metadata. Arguments: the metadata, the
        shape of every tensor, the factors of `rope_freqs.weight` or None, the file.
      tensors: the tensors.
      harmless: patterns of full tensor names that carry nothing and are passed over.
      tied_copy: the tensor of a Hugging Face file that repeats the embedding when they are tied.
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf_architecture: str
    config_from_hf: Callable[[Mapping[str, Any], Path], DecoderConfig]
    config_from_gguf: Callable[
        [
            Mapping[str, Any],
            Mapping[str, tuple[int, ...]],
            Float[np.ndarray, " half"] | None,
            Path,
        ],
        DecoderConfig,
    ]
    tensors: tuple[TensorRule, ...]
    harmless: Mapping[Spelling, Collection[str]]
    tied_copy: str = "lm_head.weight"

    def rules(self, config: DecoderConfig) -> tuple[TensorRule, ...]:
        """The tensors that a model of this configuration has."""
        return tuple(rule for rule in self.tensors if rule.when(config))

    def names(self, config: DecoderConfig, spelling: Spelling) -> Iterator[tuple[str, TensorRule]]:
        """Every tensor name that a checkpoint of this configuration must hold, with its rule."""
        for rule in self.rules(config):
            for layer in range(config.num_layers if rule.stacked else 1):
                yield rule.name(spelling, layer), rule
