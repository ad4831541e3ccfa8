"""A family of models as data: how its files spell a configuration and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from instructjax.models.config import DecoderConfig

Spelling = Literal["hf", "gguf"]


def _always(_: DecoderConfig) -> bool:
    return True


def _sizes(config: DecoderConfig) -> dict[str, int]:
    latent = config.latent
    return {
        "V": config.vocab_size,
        "E": config.hidden_size,
        "F": config.intermediate_size,
        "P": config.max_positions,
        "X": config.num_experts,
        "H": config.num_heads,
        "J": config.num_kv_heads,
        "D": config.head_dim,
        "Q": config.num_heads * config.head_dim,
        "K": config.num_kv_heads * config.head_dim,
        "S": config.shared_size,
        "W": config.dense_size,
        "A": latent.query_rank if latent else 0,
        "R": latent.rank if latent else 0,
        "C": latent.rank + latent.rotary_dim if latent else 0,
        "U": config.num_heads * latent.expanded_dim(config.head_dim) if latent else 0,
        "O": config.num_heads * latent.value_dim if latent else 0,
    }


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """Where one tensor (or one a layer) of a checkpoint goes.

    Attributes:
      param: dotted path in the parameter tree.
      dims: the shape, outermost first, in letters: V vocabulary, E hidden, F intermediate,
        P positions, X experts, H query heads, J key-value heads, D head width, Q = H D, K = J D,
        S width of the shared expert, W of the dense layers before those with experts; of latent
        attention, A and R the ranks of queries and of keys and values, C what is kept a token,
        U keys and values expanded, O values of all heads.
      hf, gguf: its name in either kind of file; "{layer}" stands for the layer's index, and
        "{each}" for an index of what `each` counts. None: such files are not supported.
      transpose: stored [out, in], kept [in, out].
      rotary_heads: for "query" and "key", GGUF stores the two halves of each head's rotary
        pairs interleaved; they are put back side by side, as Hugging Face has them.
      interleaved: Hugging Face has them interleaved as well.
      fused: letters of the parameters that are stored as one tensor, one after the other along
        the axis `fused_axis`; this one is number `index` among them.
      by_head: within a fused tensor the parts alternate, head by head.
      in_turns: within a fused tensor the parts alternate along `fused_axis`, index by index.
      each: a letter; the parameter has a further leading axis, stored as a tensor each.
      each_stacked: those that `each` counts are one tensor in GGUF files, along a first axis.
      transpose_last: as `transpose`, of a stack of matrices.
      offset: what a GGUF file has added to it.
      in_float32: kept in float32 whatever the other parameters are.
      when: whether a configuration has this tensor at all.
    """

    param: str
    dims: str
    hf: str
    gguf: str | None = None
    transpose: bool = False
    rotary_heads: Literal["query", "key"] | None = None
    interleaved: bool = False
    fused: str = ""
    index: int = 0
    fused_axis: int = 0
    by_head: bool = False
    in_turns: bool = False
    each: str = ""
    each_stacked: bool = False
    transpose_last: bool = False
    offset: float = 0.0
    in_float32: bool = False
    when: Callable[[DecoderConfig], bool] = _always

    @property
    def stacked(self) -> bool:
        """Whether every layer has one, stacked on a leading axis."""
        return "{layer}" in self.hf

    def layers(self, config: DecoderConfig) -> range:
        """The layers that have one: dense layers before those with experts are a stack apart."""
        if not self.stacked:
            return range(1)
        if self.param.startswith("dense_layers."):
            return range(config.dense_layers)
        return range(config.dense_layers, config.num_layers)

    def name(self, spelling: Spelling, layer: int = 0, each: int = 0) -> str:
        """The tensor's name in a file of that spelling."""
        name = self.hf if spelling == "hf" else self.gguf
        assert name is not None  # a family without GGUF is never asked
        return name.replace("{layer}", str(layer)).replace("{each}", str(each))

    def count(self, config: DecoderConfig) -> int:
        """How many tensors a layer hold the parameter."""
        return _sizes(config)[self.each] if self.each else 1

    def part_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """The shape of what is read from one tensor."""
        sizes = _sizes(config)
        return tuple(sizes[letter] for letter in self.dims)

    def stored_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """The shape of one tensor as the checkpoint has it."""
        shape, sizes = list(self.part_shape(config)), _sizes(config)
        if self.fused:
            shape[self.fused_axis] = sum(sizes[letter] for letter in self.fused)
        if self.each_stacked:
            shape = [self.count(config), *shape]
        return tuple(shape)

    def param_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """The shape of the parameter, the axis of layers included."""
        shape = self.part_shape(config)
        shape = shape[::-1] if self.transpose else shape
        shape = (*shape[:-2], shape[-1], shape[-2]) if self.transpose_last else shape
        shape = (self.count(config), *shape) if self.each else shape
        return (len(self.layers(config)), *shape) if self.stacked else shape

    def part_of(
        self, stored: Shaped[np.ndarray, "*shape"], config: DecoderConfig
    ) -> Shaped[np.ndarray, "*part"]:
        """This parameter's share of a fused tensor."""
        sizes = _sizes(config)
        if self.by_head:
            heads = stored.reshape(config.num_heads, len(self.fused), -1, *stored.shape[1:])
            return heads[:, self.index].reshape(-1, *stored.shape[1:])
        if self.in_turns:
            turns = slice(self.index, None, len(self.fused))
            return stored[(slice(None),) * self.fused_axis + (turns,)]
        before, own = self.fused[: self.index], self.fused[self.index]
        start = sum(sizes[letter] for letter in before)
        at = (slice(None),) * self.fused_axis + (slice(start, start + sizes[own]),)
        return stored[at]

    def num_rotary_heads(self, config: DecoderConfig, spelling: Spelling) -> int:
        """Heads whose rotary pairs are interleaved in such a file; 0 where none are."""
        if self.rotary_heads is None or (spelling == "hf" and not self.interleaved):
            return 0
        return config.num_heads if self.rotary_heads == "query" else config.num_kv_heads


ConfigFromGguf = Callable[
    [
        Mapping[str, Any],
        Mapping[str, tuple[int, ...]],
        Float[np.ndarray, " half"] | None,
        Path,
    ],
    DecoderConfig,
]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of decoders: everything that differs between families' files.

    Attributes:
      model_type: Hugging Face's `model_type`.
      architectures: Hugging Face's class names that this family covers.
      gguf_architecture: `general.architecture` in GGUF files; None: those are not supported.
      config_from_hf: the configuration from the dict of a config.json. Arguments: the dict,
        the file (for messages).
      config_from_gguf: the configuration from GGUF metadata. Arguments: the metadata, the
        shape of every tensor, the factors of `rope_freqs.weight` or None, the file.
      tensors: the tensors.
      gguf_tensors: those of GGUF files where they are not the same rules.
      harmless: patterns of full tensor names that carry nothing and are passed over.
      renames: pairs of a pattern and what replaces it, for other names of tensors.
      stacks: tensors of a Hugging Face layer that hold a matrix of every expert, [X, out, in], by
        the end of their names, and what their rows' parts are called where experts are stored one
        by one.
      tied_copy: the tensor of a Hugging Face file that repeats the embedding when they are tied.
    """

    model_type: str
    architectures: tuple[str, ...]
    config_from_hf: Callable[[Mapping[str, Any], Path], DecoderConfig]
    tensors: tuple[TensorRule, ...]
    harmless: Mapping[Spelling, Collection[str]]
    gguf_tensors: tuple[TensorRule, ...] = ()
    gguf_architecture: str | None = None
    config_from_gguf: ConfigFromGguf | None = None
    renames: tuple[tuple[str, str], ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tied_copy: str = "lm_head.weight"

    @property
    def all_renames(self) -> tuple[tuple[str, str], ...]:
        """Of tensors saved without the model's head, whose names lack its name, and `renames`."""
        names = {rule.param: rule.hf for rule in self.tensors}
        model = names["embed.embedding"].partition(".")[0]
        inner = [name.split(".")[1] for name in names.values() if name.startswith(f"{model}.")]
        bare = rf"^({'|'.join(dict.fromkeys(inner))})\."
        return ((bare, rf"{model}.\1."), *self.renames)

    def rules(self, config: DecoderConfig, spelling: Spelling = "hf") -> tuple[TensorRule, ...]:
        """The tensors that a model of this configuration has."""
        tensors = self.gguf_tensors if spelling == "gguf" and self.gguf_tensors else self.tensors
        return tuple(rule for rule in tensors if rule.when(config))

    def names(self, config: DecoderConfig, spelling: Spelling) -> Iterator[tuple[str, TensorRule]]:
        """Every tensor name that a checkpoint of this configuration must hold, with its rule."""
        for rule in self.rules(config, spelling):
            for layer in rule.layers(config):
                for each in range(rule.count(config)):
                    yield rule.name(spelling, layer, each), rule
