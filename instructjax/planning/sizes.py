"""Known sizes of models by name: the config.json of each, typed in, so that no file is needed.

What a decoder is read from; options of training, generation and bookkeeping are left out.
"""

from __future__ import annotations

from typing import Any

_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


_SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
_MISTRAL = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "sliding_window": None,
}
_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
}
_GEMMA2 = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def _shape(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


_GPT_OSS = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "max_position_embeddings": 131072,
    "sliding_window": 128,
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def _of_gpt_oss(*, layers: int, experts: int) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"] * (layers // 2)
    shape = _shape(2880, 2880, layers, 64, 8)
    return shape | {"num_local_experts": experts, "layer_types": kinds}


_DEEPSEEK_V3 = _shape(7168, 18432, 61, 128, 128) | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "max_position_embeddings": 163840,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


# By name: the hub repository whose config.json it is, and that file.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": (
        "meta-llama/Llama-3.1-8B",
        _LLAMA3 | _shape(4096, 14336, 32, 32, 8, rope_scaling=_llama3_rope(8.0)),
    ),
    "llama-3.1-70b": (
        "meta-llama/Llama-3.1-70B",
        _LLAMA3 | _shape(8192, 28672, 80, 64, 8, rope_scaling=_llama3_rope(8.0)),
    ),
    "llama-3.1-405b": (
        "meta-llama/Llama-3.1-405B",
        _LLAMA3 | _shape(16384, 53248, 126, 128, 8, rope_scaling=_llama3_rope(8.0)),
    ),
    "llama-3.2-1b": (
        "meta-llama/Llama-3.2-1B",
        _LLAMA3
        | _shape(2048, 8192, 16, 32, 8, head_dim=64, rope_scaling=_llama3_rope(32.0))
        | {"tie_word_embeddings": True},
    ),
    "llama-3.2-3b": (
        "meta-llama/Llama-3.2-3B",
        _LLAMA3
        | _shape(3072, 8192, 28, 24, 8, head_dim=128, rope_scaling=_llama3_rope(32.0))
        | {"tie_word_embeddings": True},
    ),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M", _SMOLLM2 | _shape(576, 1536, 30, 9, 3)),
    "smollm2-360m": ("HuggingFaceTB/SmolLM2-360M", _SMOLLM2 | _shape(960, 2560, 32, 15, 5)),
    "smollm2-1.7b": (
        "HuggingFaceTB/SmolLM2-1.7B",
        _SMOLLM2 | _shape(2048, 8192, 24, 32, 32, rope_theta=130000.0),
    ),
    "mistral-7b": (
        "mistralai/Mistral-7B-v0.3",
        _MISTRAL | _shape(4096, 14336, 32, 32, 8, model_type="mistral", vocab_size=32768),
    ),
    "mixtral-8x7b": (
        "mistralai/Mixtral-8x7B-v0.1",
        _MISTRAL
        | _shape(4096, 14336, 32, 32, 8, model_type="mixtral", vocab_size=32000)
        | {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen3-0.6b": (
        "Qwen/Qwen3-0.6B",
        _QWEN3 | _shape(1024, 3072, 28, 16, 8, tie_word_embeddings=True),
    ),
    "qwen3-1.7b": (
        "Qwen/Qwen3-1.7B",
        _QWEN3 | _shape(2048, 6144, 28, 16, 8, tie_word_embeddings=True),
    ),
    "qwen3-4b": (
        "Qwen/Qwen3-4B",
        _QWEN3 | _shape(2560, 9728, 36, 32, 8, tie_word_embeddings=True),
    ),
    "qwen3-8b": ("Qwen/Qwen3-8B", _QWEN3 | _shape(4096, 12288, 36, 32, 8)),
    "qwen3-14b": ("Qwen/Qwen3-14B", _QWEN3 | _shape(5120, 17408, 40, 40, 8)),
    "qwen3-32b": ("Qwen/Qwen3-32B", _QWEN3 | _shape(5120, 25600, 64, 64, 8)),
    "qwen3-30b-a3b": (
        "Qwen/Qwen3-30B-A3B",
        _QWEN3
        | _shape(2048, 6144, 48, 32, 4, model_type="qwen3_moe", moe_intermediate_size=768)
        | {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True},
    ),
    "gpt-oss-20b": ("openai/gpt-oss-20b", _GPT_OSS | _of_gpt_oss(layers=24, experts=32)),
    "gpt-oss-120b": ("openai/gpt-oss-120b", _GPT_OSS | _of_gpt_oss(layers=36, experts=128)),
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3),
    "gemma-2-2b": (
        "google/gemma-2-2b",
        _GEMMA2 | _shape(2304, 9216, 26, 8, 4, head_dim=256, query_pre_attn_scalar=256),
    ),
    "gemma-2-9b": (
        "google/gemma-2-9b",
        _GEMMA2 | _shape(3584, 14336, 42, 16, 8, head_dim=256, query_pre_attn_scalar=256),
    ),
    "gemma-2-27b": (
        "google/gemma-2-27b",
        _GEMMA2 | _shape(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    ),
}
