"""What each architecture's GGUF metadata says of a configuration, besides what all say.

What a file does not say, llama.cpp fixes for each architecture (`src/llama-model.cpp`): which
layers have a window, whether experts' weights add up to 1, the scale of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from instructjax.models.config import NO_ROPE, LayerKind, RopeConfig
from instructjax.models.families.family import ConfigFromGguf
from instructjax.models.families.gguf_config import Shapes, read_number, reader
from instructjax.models.families.gguf_deepseek import READS, deepseek
from instructjax.models.families.options import Options

_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length")


def _layers(
    options: Options,
    base: dict[str, Any],
    slides: Callable[[int], bool],
    far: RopeConfig,
    near: RopeConfig,
) -> tuple[LayerKind, ...]:
    window = options.integer("attention.sliding_window")
    return tuple(
        LayerKind(window=window, rope=near) if slides(i) else LayerKind(rope=far)
        for i in range(base["num_layers"])
    )


def _experts(options: Options, normalize: bool) -> dict[str, Any]:
    wide = options.get("expert_feed_forward_length")
    return {
        "num_experts": options.integer("expert_count"),
        "experts_per_token": options.integer("expert_used_count"),
        "normalize_experts": normalize,
        **({} if wide is None else {"intermediate_size": wide}),
    }


def _plain(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {}


def _qwen2(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {"output_bias": False}


def _qwen3(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {"qk_norm": "head"}


def _qwen3_moe(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {"qk_norm": "head", **_experts(options, normalize=True)}


def _mixtral(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return _experts(options, normalize=True)


def _olmoe(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {"qk_norm": "all", **_experts(options, normalize=False)}


def _gemma(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "norm": "rms1p",
        "activation": "gelu_tanh",
        "embedding_multiplier": base["hidden_size"] ** 0.5,
    }


def _second(options: Options, base: dict[str, Any], shapes: Shapes, large: int) -> dict[str, Any]:
    # The 27B models, which have so many layers, are scaled by the width of the hidden state.
    is_large = base["num_layers"] == large
    width = base["hidden_size"] / base["num_heads"] if is_large else base["head_dim"]
    return {**_gemma(options, base, shapes), "post_norm": True, "attention_scale": width**-0.5}


def _gemma2(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    rope = base["rope"]
    return {
        **_second(options, base, shapes, 46),
        "attention_softcap": read_number(options, "attn_logit_softcapping", 50.0),
        "logit_softcap": read_number(options, "final_logit_softcapping", 30.0),
        "layers": _layers(options, base, lambda i: i % 2 == 0, rope, rope),
    }


def _gemma3(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    near = RopeConfig(theta=read_number(options, "rope.freq_base_swa", 10_000.0))
    return {
        **_second(options, base, shapes, 62),
        "qk_norm": "head",
        "layers": _layers(options, base, lambda i: i % 6 < 5, base["rope"], near),
    }


def _olmo2(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {"pre_norm": False, "post_norm": True, "qk_norm": "all"}


def _olmo3(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    near = RopeConfig(theta=read_number(options, "rope.freq_base_swa", base["rope"].theta))
    layers = _layers(options, base, lambda i: i % 4 < 3, base["rope"], near)
    pattern = options.get("attention.sliding_window_pattern")
    if pattern is not None and [bool(kind.window) for kind in layers] != np.ravel(pattern).tolist():
        raise options.error("attention.sliding_window_pattern", "is not supported")
    return {**_olmo2(options, base, shapes), "layers": layers}


def _granite(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "attention_scale": read_number(options, "attention.scale"),
        "embedding_multiplier": read_number(options, "embedding_scale"),
        "residual_multiplier": read_number(options, "residual_scale"),
        "logit_multiplier": 1 / read_number(options, "logit_scale"),
    }


def _cohere(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "norm": "layer",
        "parallel": True,
        "shared_norm": True,
        "logit_multiplier": read_number(options, "logit_scale"),
        "qk_norm": "heads" if "blk.0.attn_q_norm.weight" in shapes else None,
    }


def _cohere2(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    layers = _layers(options, base, lambda i: i % 4 < 3, NO_ROPE, base["rope"])
    return {**_cohere(options, base, shapes), "layers": layers}


def _gpt_neox(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "norm": "layer",
        "norm_bias": True,
        "gated": False,
        "activation": "gelu",
        "parallel": options.flag("use_parallel_residual", True),
    }


def _gpt2(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "norm": "layer",
        "norm_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
        "rope": NO_ROPE,
        "learned_positions": True,
        # The metadata says four times the hidden width, whatever it is.
        "intermediate_size": shapes.get("blk.0.ffn_up.weight", (1,))[0],
    }


def _stablelm(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    parallel = "blk.0.ffn_norm.weight" not in shapes
    options.refuse({"use_parallel_residual": (parallel,)})
    return {
        "norm": "layer",
        "norm_bias": True,
        "parallel": parallel,
        "shared_norm": parallel,
        "output_bias": False,
        "qk_norm": "heads" if "blk.0.attn_q_norm.weight" in shapes else None,
    }


def _phi3(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    if not options.get("attention.sliding_window"):
        return {}
    return {"layers": _layers(options, base, lambda _: True, base["rope"], base["rope"])}


def _gpt_oss(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    rope = replace(base["rope"], truncate=False)
    return {
        **_experts(options, normalize=True),
        "rope": rope,
        "layers": _layers(options, base, lambda i: i % 2 == 0, rope, rope),
        "sinks": True,
        "expert_bias": True,
        "swiglu_limit": 7.0,
    }


def _smollm3(options: Options, base: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    ropes = (base["rope"] if (i + 1) % 4 else NO_ROPE for i in range(base["num_layers"]))
    return {"layers": tuple(LayerKind(rope=rope) for rope in ropes)}


_WINDOW = "attention.sliding_window"

# By the family's `model_type`.
READERS: Mapping[str, ConfigFromGguf] = {
    "qwen2": reader("qwen2", "qwen2", _qwen2),
    "qwen3": reader("qwen3", "qwen3", _qwen3),
    "qwen3_moe": reader("qwen3moe", "qwen3_moe", _qwen3_moe, _EXPERTS),
    "mixtral": reader("llama", "mixtral", _mixtral, _EXPERTS),
    # Of Mistral Small 3.1; Ministral 3, whose queries grow with the position, is refused.
    "mistral": reader("mistral3", "mistral", _plain),
    "olmoe": reader("olmoe", "olmoe", _olmoe, _EXPERTS),
    "gemma": reader("gemma", "gemma", _gemma),
    "gemma2": reader(
        "gemma2",
        "gemma2",
        _gemma2,
        (_WINDOW, "attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "gemma3_text": reader("gemma3", "gemma3_text", _gemma3, (_WINDOW, "rope.freq_base_swa")),
    "olmo2": reader("olmo2", "olmo2", _olmo2),
    "olmo3": reader(
        "olmo2",
        "olmo3",
        _olmo3,
        (_WINDOW, "attention.sliding_window_pattern", "rope.freq_base_swa"),
    ),
    "granite": reader(
        "granite",
        "granite",
        _granite,
        ("attention.scale", "embedding_scale", "residual_scale", "logit_scale"),
    ),
    "cohere": reader("command-r", "cohere", _cohere, ("logit_scale",)),
    "cohere2": reader("cohere2", "cohere2", _cohere2, ("logit_scale", _WINDOW)),
    "gpt_neox": reader("gptneox", "gpt_neox", _gpt_neox, ("use_parallel_residual",)),
    "gpt2": reader("gpt2", "gpt2", _gpt2),
    "stablelm": reader("stablelm", "stablelm", _stablelm, ("use_parallel_residual",)),
    "phi3": reader("phi3", "phi3", _phi3, (_WINDOW, "rope.scaling.attn_factor")),
    "gpt_oss": reader("gpt-oss", "gpt_oss", _gpt_oss, (_WINDOW, *_EXPERTS)),
    "smollm3": reader("smollm3", "smollm3", _smollm3),
    "deepseek_v3": reader("deepseek2", "deepseek_v3", deepseek, READS),
}
