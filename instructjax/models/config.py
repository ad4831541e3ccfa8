"""What a decoder is, as data: every family of models becomes one of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "none"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions.

    Attributes:
      theta: the base of the frequencies.
      kind: how frequencies are stretched beyond the context seen in pre-training. "dynamic" and
        "longrope" stretch those of a request longer than `original_max_positions`, from its first
        token on; its last token, which is predicted and not computed, does not count. "none" turns
        nothing: a layer without positions.
      factor: the stretch, for "linear", "dynamic", "llama3" and "yarn".
      original_max_positions: tokens of that context, but for "default" and "linear".
      low_freq_factor, high_freq_factor: the band of "llama3".
      beta_fast, beta_slow, truncate: the band of "yarn", in turns within the original context, and
        whether its ends are rounded to whole planes.
      divisors, long_divisors: what "longrope" divides each frequency by, within the original
        context and beyond it.
      attention_factor: cosines and sines are multiplied by it ("yarn", "longrope").
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()
    attention_factor: float = 1.0


NO_ROPE = RopeConfig(kind="none")


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What differs from layer to layer.

    Attributes:
      window: how many tokens a query sees, its own included; None for all.
      rope: rotary positions of the layer.
    """

    window: int | None = None
    rope: RopeConfig


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Attention whose keys and values are expanded from a short vector (DeepSeek-AI 2024).

    Attributes:
      rank: of that vector.
      query_rank: queries are expanded from a vector of their own; 0 if they are not.
      rotary_dim: how many features of a head, the last ones, are turned; those of keys come from
        the hidden state itself and are shared by all heads.
      value_dim: features of a value.
      interleaved: rotary pairs lie side by side.
    """

    rank: int
    query_rank: int = 0
    rotary_dim: int
    value_dim: int
    interleaved: bool = True

    def expanded_dim(self, head_dim: int) -> int:
        """Features a head that are expanded from the short vector."""
        return head_dim - self.rotary_dim + self.value_dim


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape and the parts of a decoder-only transformer.

    Attributes:
      family: the Hugging Face `model_type` it came from.
      vocab_size: rows of the embedding.
      hidden_size, intermediate_size, head_dim: widths in features.
      num_layers, num_heads, num_kv_heads: counts; heads are grouped over key-value heads.
      norm_eps: added to the mean square or the variance in norms.
      max_positions: the longest sequence in tokens.
      rope: rotary positions, of every layer unless `layers` says otherwise.
      layers: the kind of each layer; empty where all see everything and have `rope`.
      rotary_dim: how many features of a head, the first ones, are turned; None for all.
      learned_positions: positions are rows of a table, added to the embedding.
      tie_embeddings: the head is the embedding.
      attention_bias: biases on the projections to queries, keys and values.
      output_bias: a bias on the projection out of attention; None: as `attention_bias`.
      mlp_bias: biases on all projections of the MLP.
      norm: "rms"; "rms1p", whose scale is 1 + the stored one; or "layer" (LayerNorm).
      norm_bias: a bias in every LayerNorm of the residual stream.
      pre_norm, post_norm: norms before attention and the MLP, and of what comes out of them.
      parallel: attention and the MLP both read the layer's input.
      shared_norm: with `parallel`, they read it through one and the same norm.
      qk_norm: queries and keys are normed: each "head" with the scales of all, each head with
        scales of its own ("heads"), or "all" heads together as one vector.
      sinks: each head has one more logit, which takes part in the softmax and gives no value.
      attention_scale: what scores are multiplied by; None for head_dim ** -0.5.
      attention_softcap, logit_softcap: c in c tanh(x / c) of scores and logits.
      embedding_multiplier, residual_multiplier, logit_multiplier: of embeddings, of what each
        block adds to the residual stream, of logits.
      activation: in the MLP; "gelu_tanh" is also called gelu_new.
      gated: the MLP is down(act(gate(x)) * up(x)), else down(act(up(x))).
      num_experts: experts of width `intermediate_size` in place of the MLP; 0 for none.
      experts_per_token: how many of them a token goes to.
      normalize_experts: their weights add up to 1.
      router: weights are the softmax of the router's logits over all experts, or the sigmoid of
        each; sigmoids are chosen from after a correction a expert is added to them.
      router_groups, router_groups_used: experts stand in so many groups, of which a token may use
        so many, those whose two best experts have the largest sum.
      router_multiplier: of the weights.
      expert_bias: biases in the router and in every expert.
      swiglu_limit, swiglu_alpha: experts compute g sigmoid(alpha g) (u + 1), where g and u are gate
        and up, g at most and u within the limit; None for silu(g) u.
      shared_size: width of an expert that every token goes through besides; 0 for none.
      dense_layers, dense_size: so many first layers have an MLP of that width and no experts.
      latent: keys and values are expanded from a short vector; `num_kv_heads` is `num_heads`.
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
    layers: tuple[LayerKind, ...] = ()
    rotary_dim: int | None = None
    learned_positions: bool = False
    tie_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool | None = None
    mlp_bias: bool = False
    norm: Literal["rms", "rms1p", "layer"] = "rms"
    norm_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    qk_norm: Literal["head", "heads", "all"] | None = None
    sinks: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = False
    router: Literal["softmax", "sigmoid"] = "softmax"
    router_groups: int = 1
    router_groups_used: int = 1
    router_multiplier: float = 1.0
    expert_bias: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    shared_size: int = 0
    dense_layers: int = 0
    dense_size: int = 0
    latent: LatentAttention | None = None

    @property
    def has_output_bias(self) -> bool:
        """Whether the projection out of attention has a bias."""
        return self.attention_bias if self.output_bias is None else self.output_bias

    @property
    def value_dim(self) -> int:
        """Features of a head's values."""
        return self.latent.value_dim if self.latent else self.head_dim

    @property
    def num_params(self) -> int:
        """Parameters in the checkpoint, a tied head counted once."""
        e = self.hidden_size
        norm = e * (2 if self.norm_bias else 1)
        layer = norm * ((2 - self.shared_norm) * self.pre_norm + 2 * self.post_norm)
        layer += self._num_attention_params + self.num_heads * self.sinks
        tables = self.vocab_size * (1 if self.tie_embeddings else 2)
        tables += self.max_positions * self.learned_positions
        dense = self.dense_layers if self.num_experts else self.num_layers
        width = self.dense_size if self.num_experts else self.intermediate_size
        blocks = dense * self._num_mlp_params(width)
        blocks += (self.num_layers - dense) * self._num_expert_params
        return self.num_layers * layer + blocks + tables * e + norm

    @property
    def _num_attention_params(self) -> int:
        e, d = self.hidden_size, self.head_dim
        q, kv = self.num_heads * d, self.num_kv_heads * d
        bias = self.attention_bias
        if self.latent is not None:
            a, r, turned = self.latent.query_rank, self.latent.rank, self.latent.rotary_dim
            queries = a * (e + 1 + q + bias) if a else e * q
            keys = (r + turned) * (e + bias) + r * (
                1 + self.num_heads * self.latent.expanded_dim(d)
            )
            return queries + keys + e * (self.num_heads * self.latent.value_dim + bias)
        norms = {None: 0, "head": 2 * d, "heads": q + kv, "all": q + kv}[self.qk_norm]
        biases = (q + 2 * kv) * bias + e * self.has_output_bias
        return e * (2 * q + 2 * kv) + norms + biases

    def _num_mlp_params(self, width: int) -> int:
        wide = 2 if self.gated else 1
        biases = (wide * width + self.hidden_size) * self.mlp_bias
        return (wide + 1) * self.hidden_size * width + biases

    @property
    def _num_expert_params(self) -> int:
        e, f, count = self.hidden_size, self.intermediate_size, self.num_experts
        router = count * (e + (self.router == "sigmoid") + self.expert_bias)
        experts = count * (3 * e * f + (2 * f + e) * self.expert_bias)
        return router + experts + 3 * e * self.shared_size
