"""How GGUF files name and lay out the tensors of a family, from the rules of Hugging Face files.

Names are those of the `gguf` package (`gguf.TENSOR_NAMES`); what llama.cpp's converter does to a
tensor besides is said per architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from instructjax.models.families.family import TensorRule

_NAMES: Mapping[str, str] = {
    "embed.embedding": "token_embd",
    "embed.positions": "position_embd",
    "lm_head": "output",
    "final_norm": "output_norm",
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.sinks": "attn_sinks",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared.gate": "ffn_gate_shexp",
    "mlp.shared.up": "ffn_up_shexp",
    "mlp.shared.down": "ffn_down_shexp",
    "attention.q_down": "attn_q_a",
    "attention.q_up": "attn_q_b",
    "attention.kv_down": "attn_kv_a_mqa",
    "attention.kv_norm": "attn_kv_a_norm",
    "attention.kv_up": "attn_kv_b",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def gguf_rules(
    rules: tuple[TensorRule, ...],
    *,
    permuted: bool = False,
    norm_offset: float = 0.0,
    names: Mapping[str, str] = {},
) -> tuple[TensorRule, ...]:
    """The rules of a family's GGUF files.

    Args:
      rules: of its Hugging Face files.
      permuted: the converter interleaves rotary pairs of queries and keys.
      norm_offset: what it adds to the scales of norms.
      names: of tensors that are not called as elsewhere.
    """
    return tuple(_rule(rule, permuted, norm_offset, {**_NAMES, **names}) for rule in rules)


def _rule(
    rule: TensorRule, permuted: bool, norm_offset: float, names: Mapping[str, str]
) -> TensorRule:
    path = rule.param.removeprefix("dense_").removeprefix("layers.")
    in_layer = "blk.{layer}." if rule.stacked else ""
    changes: dict[str, Any] = {
        "rotary_heads": rule.rotary_heads if permuted or rule.interleaved else None
    }
    if path.startswith("mlp.") and "_" in path:  # a bias of experts
        stem, leaf = names[path.removesuffix("_bias")] + "_exps", "bias"
    elif path in ("mlp.gate", "mlp.up", "mlp.down"):
        stem, leaf = names[path] + "_exps", "weight"
    elif path == "mlp.router.correction":
        stem, leaf = "exp_probs_b", "bias"
    elif path in names:
        stem, leaf = names[path], "weight"
    else:
        stem, _, leaf = path.rpartition(".")
        stem, leaf = names[stem], _LEAVES[leaf]
    if path.endswith("norm.scale"):
        changes["offset"] = norm_offset
    if rule.in_turns or (rule.param.startswith("layers.mlp.") and len(rule.dims) == 3):
        # Gates and ups of GPT-OSS are apart here, and every matrix is [out, in].
        changes |= {"fused": "", "in_turns": False, "index": 0}
        if len(rule.dims) == 3:
            changes |= {"dims": rule.dims[0] + rule.dims[:0:-1], "transpose_last": True}
    elif rule.fused:
        stem = "attn_qkv" if rule.fused == "QKK" else "ffn_up"
        changes["by_head"] = False
    if rule.fused and rule.fused_axis == 1 and not rule.in_turns and len(rule.dims) == 2:
        changes["fused_axis"] = 0
    in_out = path.endswith(".kernel") and path != "lm_head.kernel" and not rule.transpose
    if in_out:  # of GPT-2, whose Hugging Face files store [in, out]
        changes |= {"dims": rule.dims[::-1], "transpose": True}
    return replace(rule, gguf=f"{in_layer}{stem}.{leaf}", each_stacked=bool(rule.each), **changes)
