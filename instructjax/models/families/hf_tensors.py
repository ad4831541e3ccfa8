"""What the families of Hugging Face share: how tensors are named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from instructjax.models.config import DecoderConfig
from instructjax.models.families.family import Spelling, TensorRule

HARMLESS: Mapping[Spelling, Collection[str]] = {"hf": (r".*rotary_emb\.inv_freq",), "gguf": ()}

# What transformers 5 calls experts that it has not written one by one, see `expert_tensors`.
EXPERT_STACKS: Mapping[str, tuple[str, ...]] = {
    "mlp.experts.gate_up_proj": (
        "mlp.experts.{each}.gate_proj.weight",
        "mlp.experts.{each}.up_proj.weight",
    ),
    "mlp.experts.down_proj": ("mlp.experts.{each}.down_proj.weight",),
}


def hf_tensors(
    *,
    embed: str = "model.embed_tokens",
    head: str = "lm_head",
    final_norm: str = "model.norm",
    layer: str = "model.layers.{layer}.",
    attention_norm: str = "input_layernorm",
    mlp_norm: str = "post_attention_layernorm",
    attention_post_norm: str = "",
    mlp_post_norm: str = "",
    q: str | tuple[str, int] = "self_attn.q_proj",
    k: str | tuple[str, int] = "self_attn.k_proj",
    v: str | tuple[str, int] = "self_attn.v_proj",
    o: str = "self_attn.o_proj",
    gate: str | tuple[str, int] = "mlp.gate_proj",
    up: str | tuple[str, int] = "mlp.up_proj",
    down: str = "mlp.down_proj",
    transposed: bool = False,
    by_head: bool = False,
    interleaved: bool = False,
) -> tuple[TensorRule, ...]:
    """Tensor rules from names as Hugging Face models have them; the defaults are Llama's.

    Args:
      embed, head, final_norm: names without ".weight".
      layer: what stands before the names of a layer's tensors.
      attention_norm, mlp_norm, attention_post_norm, mlp_post_norm: of the layer; a configuration
        says which of them there are.
      q, k, v, o, gate, up, down: of projections; (name, i) is part i of a fused one.
      transposed: projections are stored [in, out].
      by_head: queries, keys and values alternate head by head in a fused projection.
      interleaved: rotary pairs lie side by side in queries and keys.
    """

    def norm(param: str, name: str, when: Callable[[DecoderConfig], bool]):
        return (
            TensorRule(param=f"{param}.scale", dims="E", hf=f"{name}.weight", when=when),
            TensorRule(
                param=f"{param}.bias",
                dims="E",
                hf=f"{name}.bias",
                when=lambda config: config.norm_bias and when(config),
            ),
        )

    def linear(
        param: str,
        dims: str,
        name: str | tuple[str, int],
        bias: Callable[[DecoderConfig], bool],
        when: Callable[[DecoderConfig], bool] = lambda _: True,
        fused: str = "",
        rotary: Any = None,
    ):
        name, index = name if isinstance(name, tuple) else (name, None)
        shared: dict[str, Any] = {"rotary_heads": rotary, "interleaved": interleaved}
        if index is not None:
            shared |= {"fused": fused, "index": index, "by_head": by_head and fused == "QKK"}
        return (
            TensorRule(
                param=f"layers.{param}.kernel",
                dims=dims[::-1] if transposed else dims,
                hf=f"{layer}{name}.weight",
                transpose=not transposed,
                fused_axis=int(transposed),
                when=when,
                **shared,
            ),
            TensorRule(
                param=f"layers.{param}.bias",
                dims=dims[0],
                hf=f"{layer}{name}.bias",
                when=lambda config: bias(config) and when(config),
                **shared,
            ),
        )

    def is_dense(config: DecoderConfig) -> bool:
        return not config.num_experts

    def attention_bias(config: DecoderConfig) -> bool:
        return config.attention_bias

    def mlp_bias(config: DecoderConfig) -> bool:
        return config.mlp_bias

    return (
        TensorRule(param="embed.embedding", dims="VE", hf=f"{embed}.weight"),
        TensorRule(
            param="lm_head.kernel",
            dims="VE",
            hf=f"{head}.weight",
            when=lambda config: not config.tie_embeddings,
        ),
        *norm("final_norm", final_norm, lambda _: True),
        *norm("layers.attention_norm", layer + attention_norm, lambda c: c.pre_norm),
        *norm("layers.mlp_norm", layer + mlp_norm, lambda c: c.pre_norm and not c.shared_norm),
        *norm("layers.attention_post_norm", layer + attention_post_norm, lambda c: c.post_norm),
        *norm("layers.mlp_post_norm", layer + mlp_post_norm, lambda c: c.post_norm),
        *linear("attention.q", "QE", q, attention_bias, fused="QKK", rotary="query"),
        *linear("attention.k", "KE", k, attention_bias, fused="QKK", rotary="key"),
        *linear("attention.v", "KE", v, attention_bias, fused="QKK"),
        *linear("attention.o", "EQ", o, lambda config: config.has_output_bias),
        *linear("mlp.gate", "FE", gate, mlp_bias, lambda c: c.gated and is_dense(c), fused="FF"),
        *linear("mlp.up", "FE", up, mlp_bias, is_dense, fused="FF"),
        *linear("mlp.down", "EF", down, mlp_bias, is_dense),
    )


def expert_tensors(
    *,
    router: str = "mlp.gate.weight",
    gate: str = "mlp.experts.{each}.gate_proj.weight",
    up: str = "mlp.experts.{each}.up_proj.weight",
    down: str = "mlp.experts.{each}.down_proj.weight",
) -> tuple[TensorRule, ...]:
    """Rules of a router and of experts that are stored one by one ("{each}" is the expert)."""
    layer = "model.layers.{layer}."
    return (
        TensorRule(param="layers.mlp.router.kernel", dims="XE", hf=layer + router, transpose=True),
        *(
            TensorRule(
                param=f"layers.mlp.{name}", dims=dims, hf=layer + hf, transpose=True, each="X"
            )
            for name, dims, hf in (("gate", "FE", gate), ("up", "FE", up), ("down", "EF", down))
        ),
    )


def qk_norms(
    dims: tuple[str, str],
    *,
    names: tuple[str, str] = ("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    each: tuple[str, str] = ("", ""),
    interleaved: bool = False,
) -> tuple[TensorRule, TensorRule]:
    """Rules of the norms of queries and keys; arguments are those of `TensorRule`, two of each."""

    def rule(index: int, which: str, heads: Any) -> TensorRule:
        return TensorRule(
            param=f"layers.attention.{which}_norm.scale",
            dims=dims[index],
            hf="model.layers.{layer}." + names[index],
            rotary_heads=heads,
            interleaved=interleaved,
            each=each[index],
            when=lambda config: config.qk_norm is not None,
        )

    return rule(0, "q", "query"), rule(1, "k", "key")
