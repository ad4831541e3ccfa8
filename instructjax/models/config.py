"""What a decoder is, as data: every family of models becomes one of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions.

    Attributes:
      theta: the base of the frequencies.
      kind: how frequencies are stretched beyond the context seen in pre-training. "dynamic"
        equals "default" up to `DecoderConfig.max_positions`, beyond which no request is taken.
      factor: the stretch, for "linear" and "llama3".
      low_freq_factor, high_freq_factor, original_max_positions: the band of "llama3".
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "dynamic", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape and the parts of a decoder-only transformer.

    Attributes:
      family: the Hugging Face `model_type` it came from.
      vocab_size: rows of the embedding.
      hidden_size, intermediate_size, head_dim: widths in features.
      num_layers, num_heads, num_kv_heads: counts; heads are grouped over key-value heads.
      norm_eps: added to the mean square in RMSNorm.
      max_positions: the longest sequence in tokens.
      rope: rotary positions.
      tie_embeddings: the head is the embedding.
      attention_bias, mlp_bias: biases on all projections of the block.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def num_params(self) -> int:
        """Parameters in the checkpoint, a tied head counted once."""
        e, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = 2 * e + e * (2 * q + 2 * kv) + 3 * e * f
        if self.attention_bias:
            layer += q + 2 * kv + e
        if self.mlp_bias:
            layer += 2 * f + e
        embeddings = self.vocab_size * e * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + e
