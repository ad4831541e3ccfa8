"""Make the golden fixtures: tiny Llama checkpoints and what PyTorch says of them.

Run in an environment with torch and transformers; the tests need neither:

    python tests/make_fixtures.py [NAME ...]

Everything is seeded. Weights are random, and large enough that the distributions are far from
uniform. Every sequence goes through the model alone, without padding, in float32.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FIXTURES = Path(__file__).parent / "fixtures"
VOCAB = 352

LINES = (
    "Summarize the key point of the following text.",
    "Jupiter is the fifth planet from the Sun and the largest in the Solar System.",
    "Jupiter is the largest planet in our solar system.",
    "Answer the question with one word. What is the capital of France? Paris.",
    "Translate the sentence into German: the house is small. Das Haus ist klein.",
    "Is the sentiment of the following review positive or negative? positive negative",
    "The instruction says what to do with the input, and the response does it.",
    "one two three four five six seven eight nine ten, 0 1 2 3 4 5 6 7 8 9",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n\n"
    "{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Fixture:
    """One checkpoint: what differs from the others."""

    name: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "chatml"
    dtype: torch.dtype = torch.float32
    shard_size: str = "5GB"
    lengths: tuple[int, ...] = (2, 3, 9, 33, 64, 65, 120)
    gradients: tuple[str, ...] = ()


ALL = (
    Fixture(
        name="llama-tied",
        seed=1,
        config={"num_key_value_heads": 2, "tie_word_embeddings": True},
        lengths=(2, 3, 9, 33, 64, 65, 120, 200),
        gradients=(
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.self_attn.k_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.layers.0.input_layernorm.weight",
            "model.norm.weight",
        ),
    ),
    Fixture(name="llama-untied", seed=2, tokenizer="bos", config={"eos_token_id": [2, 1]}),
    Fixture(
        name="llama-bias",
        seed=3,
        dtype=torch.bfloat16,
        tokenizer="base",
        # The embedding has rows beyond the tokenizer's ids, as padded vocabularies have.
        config={"attention_bias": True, "mlp_bias": True, "vocab_size": VOCAB + 8},
    ),
    Fixture(
        name="llama-rope-linear",
        seed=4,
        dtype=torch.bfloat16,
        config={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    Fixture(
        name="llama-rope-llama3",
        seed=5,
        dtype=torch.bfloat16,
        config={
            "head_dim": 16,  # not hidden_size / num_attention_heads, which is 8
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Fixture(
        name="llama-rope-dynamic",
        seed=6,
        dtype=torch.bfloat16,
        config={
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        },
    ),
    Fixture(
        name="llama-sharded-bf16",
        seed=7,
        config={"num_key_value_heads": 2},
        dtype=torch.bfloat16,
        shard_size="40KB",
    ),
)


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `LINES`: for ChatML (pad = eos), with BOS, or a base model."""
    specials = {
        "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": ["<s>", "</s>", "<|eot|>"],
        "base": ["<|endoftext|>"],
    }[kind]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    assert backend.get_vocab_size() == VOCAB
    if kind == "bos":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    end, turn = "<|endoftext|>", "<|im_end|>"
    names = {
        "chatml": {"bos_token": "<|im_start|>", "eos_token": turn, "pad_token": turn},
        "bos": {"bos_token": "<s>", "eos_token": "<|eot|>", "pad_token": "</s>"},
        "base": {"eos_token": end, "pad_token": end},
    }[kind]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = {"chatml": CHATML, "bos": WITH_BOS, "base": None}[kind]
    return tokenizer


def make_model(fixture: Fixture, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights with projections that keep the scale and logits that spread over nats."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **fixture.config})).eval()
    generator = torch.Generator().manual_seed(fixture.seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name:
                value.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                value.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                value.copy_(0.3 * noise)
            elif "q_proj" in name or "k_proj" in name:
                value.copy_(1.3 * noise / value.shape[1] ** 0.5)  # attention with clear favourites
            else:
                value.copy_(0.8 * noise / value.shape[1] ** 0.5)
    module: Any = model
    return module.to(fixture.dtype)


def sample(model: LlamaForCausalLM, length: int, seed: int) -> list[int]:
    """Ids that the model itself draws, so that likely tokens and rank 1 occur."""
    generator = torch.Generator().manual_seed(seed)
    ids = [3 + seed]
    with torch.no_grad():
        while len(ids) < length:
            p = torch.softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)
            ids.append(int(torch.multinomial(p, 1, generator=generator)))
    return ids


def make_sequences(
    fixture: Fixture, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[tuple[list[int], list[list[int]]]]:
    """Ids with spans: a conversation or text, then drawn and uniform ids of each length."""
    rng = np.random.default_rng(fixture.seed)
    sequences = []
    if tokenizer.chat_template is None:
        prompt, response = tokenizer(LINES[0])["input_ids"], tokenizer(" " + LINES[2])["input_ids"]
    else:
        turn = [{"role": "user", "content": f"{LINES[0]}\n\n{LINES[1]}"}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        response = tokenizer(LINES[2], add_special_tokens=False)["input_ids"]
    response = [*response, tokenizer.eos_token_id]
    sequences.append(([*prompt, *response], [[len(prompt), len(prompt) + len(response)]]))
    for number, length in enumerate(fixture.lengths):
        if number % 2:
            ids = sample(model, length, fixture.seed)
        else:
            ids = rng.integers(0, model.config.vocab_size, length).tolist()
        first = int(rng.integers(1, length))
        spans = [[first, length]]
        if first > 4:  # two turns: one earlier span as well
            spans.insert(0, [int(rng.integers(1, first // 2)), first // 2 + 1])
        sequences.append((ids, spans))
    return sequences


def golden(model: LlamaForCausalLM, ids: list[int], spans: list[list[int]]) -> dict[str, Any]:
    """Log-probs, entropy and rank of every token after the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    assert logits.dtype == torch.float32
    logs = torch.log_softmax(logits, dim=-1)
    targets = torch.tensor(ids[1:])[:, None]
    own = logs.gather(1, targets)
    near = ((logs - own).abs() < 1e-4).sum(-1) - 1
    return {
        "ids": ids,
        "spans": spans,
        "log_probs": [float(f"{x:.8g}") for x in own[:, 0].tolist()],
        "entropy": [float(f"{x:.8g}") for x in (-(logs.exp() * logs).sum(-1)).tolist()],
        "rank": ((logs > own).sum(-1) + 1).tolist(),
        "rank_slack": near.tolist(),  # tokens within 1e-4 nats, which rounding may put before it
    }


def write_gradients(
    model: LlamaForCausalLM,
    sequences: list[tuple[list[int], list[list[int]]]],
    names: tuple[str, ...],
    file: Path,
) -> None:
    """Of the mean log-prob over all scored tokens of all sequences."""
    # PyTorch leaves the pad token's row without its gradient; here pad is eos and occurs in texts.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    total = torch.zeros(())
    count = 0
    for ids, spans in sequences:
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], dim=-1)
        own = logs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        for start, stop in spans:
            total = total + own[start - 1 : stop - 1].sum()
            count += stop - start
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(total / count, [parameters[name] for name in names])
    arrays: dict[str, Any] = {name: grad.numpy() for name, grad in zip(names, grads, strict=True)}
    np.savez(file, **arrays)


def write_fixture(fixture: Fixture) -> None:
    """A Hugging Face folder with `expected.json` beside it."""
    folder = FIXTURES / fixture.name
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = make_tokenizer(fixture.tokenizer)
    model = make_model(fixture, tokenizer)
    model.save_pretrained(folder, max_shard_size=fixture.shard_size)
    tokenizer.save_pretrained(folder)
    # Read back: a cast would round the rotary frequencies too, which are no parameters.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for file in folder.iterdir():
        file.chmod(0o644)
    sequences = make_sequences(fixture, model, tokenizer)
    expected = {
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "sequences": [golden(model, ids, spans) for ids, spans in sequences],
    }
    write_json(folder / "expected.json", expected)
    if fixture.gradients:
        write_gradients(model, sequences, fixture.gradients, folder / "gradients.npz")


def write_rope_goldens() -> None:
    """Inverse frequencies of transformers' own functions, for every kind that is supported."""
    cases = []
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for theta, head_dim, parameters in (
        (1e4, 64, {"rope_type": "default"}),
        (1e5, 8, {"rope_type": "default"}),
        (1e4, 128, {"rope_type": "linear", "factor": 4.0}),
        (1e4, 64, {"rope_type": "dynamic", "factor": 2.0}),
        (
            5e5,
            128,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                **llama3,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            5e5,
            64,
            {
                "rope_type": "llama3",
                "factor": 32.0,
                **llama3,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            1e4,
            16,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                **llama3,
                "original_max_position_embeddings": 32,
            },
        ),
    ):
        config = LlamaConfig(
            hidden_size=head_dim * 2,
            num_attention_heads=2,
            max_position_embeddings=16384,
            rope_parameters={**parameters, "rope_theta": theta},
        )
        if parameters["rope_type"] == "default":
            rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
            inverse, scale = rotary.inv_freq, rotary.attention_scaling
        else:
            inverse, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
        assert scale == 1
        values = [float(f"{x:.9g}") for x in inverse.tolist()]
        case = {"theta": theta, "head_dim": head_dim, **parameters, "inverse_frequencies": values}
        cases.append(case)
    write_json(FIXTURES / "rope.json", cases)


def write_json(file: Path, value: Any) -> None:
    """A line an array: small, and still readable as a diff."""
    text = json.dumps(value, separators=(",", ":"))
    text = text.replace('},{"', '},\n{"').replace('],"', '],\n"').replace(':[{"', ':[\n{"')
    file.write_text(text + "\n")


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    FIXTURES.mkdir(exist_ok=True)
    for fixture in ALL:
        if fixture.name in sys.argv[1:] or not sys.argv[1:]:
            write_fixture(fixture)
            print("made", fixture.name)
    write_rope_goldens()


if __name__ == "__main__":
    main()
