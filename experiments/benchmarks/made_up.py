"""A tiny model and instruction data, made up: what a benchmark of the host's work needs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
VERBS = ("Translate", "Summarize", "Classify", "Rewrite", "Explain", "Continue", "Compare")
COMMON = (
    "the of and to in a is that it was for on are with as they be at this have from or had by word "
    "but what some we can out other were all there when up use your how said each she which their "
    "time will way about many then them write would like so these her long make thing see him two "
    "has look more day could go come did number sound no most people my over know water than call "
    "first who may down side been now find any new work part take get place made live where after "
    "back little only round man year came show every good me give our under name very through just"
)
WORDS = COMMON.split()
INSTRUCTIONS = 200


def write_rows(path: Path, count: int, *, seed: int = 0, median: int = 3) -> None:
    """Rows as instruction data has them: few instructions, many inputs, one or two candidates.

    Inputs and candidates have `median` words in the middle and up to 300.
    """
    rng = random.Random(seed)
    instructions = [
        f"{rng.choice(VERBS)} {' '.join(rng.choices(WORDS, k=rng.randint(4, 16)))}."
        for _ in range(INSTRUCTIONS)
    ]
    with path.open("w") as stream:
        for _ in range(count):
            lengths = [
                min(int(rng.lognormvariate(math.log(median), 0.8)) + 1, 300) for _ in range(3)
            ]
            texts = [" ".join(rng.choices(WORDS, k=n)) for n in lengths]
            outputs = texts[1 : rng.choice((2, 2, 3))]
            row = {"instruction": rng.choice(instructions), "input": texts[0], "output": outputs}
            stream.write(json.dumps(row) + "\n")


def make_model(folder: Path) -> None:
    """A Hugging Face folder: a decoder of one layer, and a tokenizer trained on `WORDS`."""
    folder.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"],
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    backend.save(str(folder / "tokenizer.json"))
    about = {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps(TINY))
    hidden, inner, kv = 32, 64, 16
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (TINY["vocab_size"], hidden),
        f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
        f"{layer}.self_attn.k_proj.weight": (kv, hidden),
        f"{layer}.self_attn.v_proj.weight": (kv, hidden),
        f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
        f"{layer}.mlp.gate_proj.weight": (inner, hidden),
        f"{layer}.mlp.up_proj.weight": (inner, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, inner),
        f"{layer}.input_layernorm.weight": (hidden,),
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
    }
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
