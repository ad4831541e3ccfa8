"""Make the golden fixtures of the families: tiny checkpoints and what PyTorch says of them.

Run in an environment with torch and transformers; the tests need neither:

    python tests/make_family_fixtures.py [NAME ...]

A folder each in `fixtures/families`: config.json, weights stored as bfloat16, `expected.json` with
ids and the log-prob of every token after the first, `gradients/model.safetensors` with the
gradient of the mean of them all. Attention is PyTorch's plainest ("eager"); every sequence goes
through the model alone, without padding, in float32.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils.quantization_config import Mxfp4Config

FOLDER = Path(__file__).parent / "fixtures" / "families"
VOCAB = 80
LENGTHS = (3, 37, 97)

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
FULL, SLIDING = "full_attention", "sliding_attention"
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [1.5, 3.0, 6.0],
}

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# Further configurations of a family are narrower, which keeps the files small.
NARROW = {"hidden_size": 16, "intermediate_size": 24}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 8,
}

# Name: (what transformers calls it, what differs from SHAPE).
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-window-yarn": (
        "Qwen2",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "rope_parameters": YARN,
        },
    ),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-tied-wide-heads": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 12}),
    "qwen3-bias-yarn": (
        "Qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "rope_parameters": {**YARN, "beta_fast": 16.0, "truncate": False},
        },
    ),
    "mistral-window": ("Mistral", {"sliding_window": 24, "head_dim": 12}),
    "mistral-full": (
        "Mistral",
        {**NARROW, "sliding_window": None, "num_key_value_heads": 1},
    ),
    "ministral-mixed": (
        "Ministral",
        {
            **NARROW,
            "head_dim": 8,
            "sliding_window": 70,
            "num_hidden_layers": 3,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3-window-bias": (
        "SmolLM3",
        {
            **NARROW,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma-one-kv-head": ("Gemma", {"num_key_value_heads": 1, "head_dim": 12}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 12}),
    "gemma2-untied": (
        "Gemma2",
        {
            **NARROW,
            "head_dim": 12,
            "sliding_window": 40,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 12.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 8,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                SLIDING: {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2-tied-bias": (
        "Olmo2",
        {**NARROW, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "olmo3": (
        "Olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1e4}},
        },
    ),
    "phi3-window": ("Phi3", {"sliding_window": 20}),
    "phi3-longrope-partial": (
        "Phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.75},
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "granite-bias": (
        "Granite",
        {**NARROW, "attention_bias": True, "mlp_bias": True, "logits_scaling": 0.5},
    ),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.25}),
    "gpt-neox-sequential": (
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("GPT2", NARROW),
    "gpt2-untied": (
        "GPT2",
        {**NARROW, "tie_word_embeddings": False, "n_inner": 48, "scale_attn_weights": False},
    ),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm-parallel": (
        "StableLm",
        {
            **NARROW,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "partial_rotary_factor": 0.5,
        },
    ),
    "cohere": ("Cohere", {"logit_scale": 0.5}),
    "cohere-qk-norm": (
        "Cohere",
        {
            **NARROW,
            "use_qk_norm": True,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "logit_scale": 0.6,
        },
    ),
    "cohere2": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 8, "logit_scale": 0.7}),
    "mixtral-window": (
        "Mixtral",
        {"num_local_experts": 4, "intermediate_size": 24, "sliding_window": 20},
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-moe-normalized": (
        "Qwen3Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "head_dim": 12,
            "norm_topk_prob": True,
        },
    ),
    "olmoe": (
        "Olmoe",
        {"num_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 16},
    ),
    "gpt-oss": (
        "GptOss",
        {
            "head_dim": 8,
            "intermediate_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "swiglu_limit": 1.5,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "gpt-oss-mxfp4": (
        "GptOss",
        {
            "hidden_size": 32,
            "head_dim": 8,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "layer_types": [FULL],
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **LATENT,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        },
    ),
    "deepseek-v3-one-group": (
        "DeepseekV3",
        {
            **NARROW,
            **LATENT,
            "first_k_dense_replace": 0,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "n_shared_experts": 2,
            "attention_bias": True,
            "rope_interleave": False,
        },
    ),
    # Texts go past the original context of 32 under each kind of scaling.
    "llama-past-linear": (
        "Llama",
        {**TINY, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-past-dynamic": (
        "Llama",
        {
            **TINY,
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "llama-past-llama3": (
        "Llama",
        {
            **TINY,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e3,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama-past-yarn": ("Llama", {**TINY, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "phi3-past-longrope": (
        "Phi3",
        {
            **TINY,
            "original_max_position_embeddings": 32,
            "rope_parameters": {**LONG, "short_factor": [1.0, 1.1, 1.25, 1.5]}
            | {"long_factor": [1.25, 2.0, 3.0, 6.0]},
        },
    ),
    "qwen3-fp8": (
        "Qwen3",
        {"head_dim": 8, "num_hidden_layers": 1, "intermediate_size": 48, "attention_bias": True},
    ),
    # llama.cpp does not load this one with grouped heads
    "olmoe-each-head": (
        "Olmoe",
        {**TINY, "num_key_value_heads": 2, "num_experts": 5, "num_experts_per_tok": 2}
        | {"norm_topk_prob": True},
    ),
}
CLASSES = {
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "Gemma3Text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def make_model(kind: str, changes: dict[str, Any], seed: int):
    """A model with random weights, large enough that distributions are far from uniform."""
    shape = {**SHAPE, **changes}
    if kind == "GPT2":
        for name in ("intermediate_size", "num_key_value_heads"):
            shape.pop(name)
        shape = {GPT2_NAMES.get(name, name): value for name, value in shape.items()}
    if kind == "GPTNeoX":
        shape.pop("num_key_value_heads")
    config_name, model_name = CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    config = getattr(transformers, config_name)(**shape, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("bias", "sinks")):
                value.copy_(0.3 * noise)
            elif "norm" in name or ".ln_" in name:
                value.copy_(0.3 * noise + (0 if kind.startswith("Gemma") else 1))
            elif value.shape[0] == VOCAB or "wpe" in name:
                value.copy_(0.4 * noise)
            else:
                inner = value.shape[0] if kind == "GPT2" else value.shape[1]
                value.copy_(1.1 * noise / inner**0.5)
        for name, value in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return model


def token_log_probs(model, ids: torch.Tensor) -> torch.Tensor:
    """log p of every id after the first, given those before it.

    The last is not fed: dynamic RoPE and LongRoPE would count it.
    """
    logits = model(ids[None, :-1], use_cache=False).logits[0]
    assert logits.dtype == torch.float32
    return torch.log_softmax(logits, dim=-1).gather(1, ids[1:, None])[:, 0]


def pack_mxfp4(tensors: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, Any]:
    """Random experts in MXFP4: any byte is two numbers, scales near those of trained models."""
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inner, outer = tensors.pop(name).shape
        shape = (count, outer, inner // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=generator)
        scales = torch.randint(121, 126, shape[:3], generator=generator)
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        tensors[f"{name}_scales"] = scales.to(torch.uint8)
    return {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def pack_fp8(tensors: dict[str, torch.Tensor], _: torch.Generator) -> dict[str, Any]:
    """Projections in float8 with a scale for every 16 rows and columns."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        parts = tensors[name].float().reshape(rows // 16, 16, columns // 16, 16)
        scales = parts.abs().amax((1, 3)) / 448
        small = (parts / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name] = small.reshape(rows, columns).contiguous()
        tensors[f"{name}_scale_inv"] = scales
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
        "modules_to_not_convert": ["lm_head"],
    }


PACKED = {
    "gpt-oss-mxfp4": (pack_mxfp4, lambda: Mxfp4Config(dequantize=True)),
    "qwen3-fp8": (
        pack_fp8,
        lambda: transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16)),
    ),
}


def read_quantized(name: str, folder: Path, seed: int):
    """Quantizes what lies in a folder; returns what transformers reads of it, as a plain model."""
    pack, options = PACKED[name]
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    config["quantization_config"] = pack(tensors, torch.Generator().manual_seed(seed))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    auto = transformers.AutoModelForCausalLM
    read = auto.from_pretrained(folder, dtype=torch.float32, quantization_config=options())
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    delattr(config, "quantization_config")
    plain = type(read)(config).float().eval()
    plain.load_state_dict(read.state_dict())
    return plain


def write_fixture(name: str, seed: int) -> None:
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    kind, changes = ALL[name]
    made = make_model(kind, changes, seed).to(torch.bfloat16)
    made.save_pretrained(folder)
    if name in PACKED:
        model = read_quantized(name, folder, seed)
    else:
        read = type(made).from_pretrained
        model = read(folder, dtype=torch.float32, attn_implementation="eager").eval()
    (folder / "generation_config.json").unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, VOCAB, (length,), generator=generator) for length in LENGTHS]
    logs = [token_log_probs(model, ids) for ids in texts]
    mean = torch.cat(logs).mean()
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(mean, list(parameters.values()))
    # Gradients in the place of weights, so that they are saved under the names that weights have.
    with torch.no_grad():
        for value, grad in zip(parameters.values(), grads, strict=True):
            value.copy_(grad)
        for buffer_name, value in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                value.zero_()
    model.save_pretrained(folder / "gradients")
    for file in (folder / "gradients").glob("*.json"):
        file.unlink()
    expected = {
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "sequences": [
            {
                "ids": ids.tolist(),
                "log_probs": [float(f"{x:.8g}") for x in log.tolist()],
            }
            for ids, log in zip(texts, logs, strict=True)
        ],
    }
    text = json.dumps(expected, separators=(",", ":"))
    (folder / "expected.json").write_text(text.replace('},{"', '},\n{"') + "\n")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    spread = torch.cat(logs).std().item()
    print(f"{name}: {sum(p.numel() for p in parameters.values())} parameters, spread {spread:.2f}")
    assert spread > 0.4


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(ALL):
        if name in sys.argv[1:] or not sys.argv[1:]:
            write_fixture(name, seed)


if __name__ == "__main__":
    main()
