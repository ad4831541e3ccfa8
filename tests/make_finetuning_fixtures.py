"""PyTorch's numbers for ten steps of fine-tuning; writes finetuning/expected.json.

    python tests/make_finetuning_fixtures.py

The model is fixtures/llama-tied. Full fine-tuning is transformers with torch's AdamW, clipping and
transformers' cosine schedule with warm-up; LoRA is PEFT's. Each sequence is computed alone, without
padding or packing, so the numbers depend on nobody's masks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "llama-tied"
EXPECTED = Path(__file__).parent / "finetuning" / "expected.json"

STEPS, WARMUP, SEQUENCES, VOCAB = 10, 3, 6, 352
RATE, DECAY, CLIP = 5e-4, 0.1, 1.0
PROMPT_WEIGHT = 0.1  # of prompt tokens in every second step
LORA = {"rank": 4, "alpha": 8.0}
# projections by their names here and in transformers, with their widths in and out
TARGETS = {
    "q": ("self_attn.q_proj", 32, 32),
    "v": ("self_attn.v_proj", 32, 16),
    "gate": ("mlp.gate_proj", 32, 56),
    "down": ("mlp.down_proj", 56, 32),
}
LAYERS = 3


def make_steps() -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(ids, weights) of the sequences of each step; some end in pad = eos, id 2."""
    rng = np.random.default_rng(5)
    steps = []
    for step in range(STEPS):
        sequences = []
        for _ in range(SEQUENCES):
            size = int(rng.integers(4, 60))
            prompt = int(rng.integers(1, size - 1))
            ids = rng.integers(0, VOCAB, size).astype(np.int32)
            ids[-1] = 2
            weights = np.ones(size, np.float32)
            weights[:prompt] = PROMPT_WEIGHT if step % 2 else 0
            weights[0] = 0
            sequences.append((ids, weights))
        steps.append(sequences)
    return steps


def make_adapters() -> dict[str, tuple[np.ndarray, ...]]:
    """A [layers, in, rank] and B [layers, rank, out] of each target, none of them zero."""
    rng = np.random.default_rng(6)
    rank = LORA["rank"]
    return {
        name: tuple(
            0.2 * rng.standard_normal((LAYERS, *shape)).astype(np.float32)
            for shape in ((inner, rank), (rank, outer))
        )
        for name, (_, inner, outer) in TARGETS.items()
    }


def load_theirs() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    # transformers makes pad the embedding's `padding_idx`, whose gradient PyTorch drops: where pad
    # is eos, an eos inside a sequence would not be learned as an input.
    embedding: Any = model.get_input_embeddings()
    embedding.padding_idx = None
    return model


def train(model: Any) -> dict[str, Any]:
    """Ten steps; losses, gradient norms and the parameters that were trained."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = ("norm", "embed", "bias")
    groups = [
        {"params": [p for n, p in named.items() if not any(x in n for x in plain)]},
        {
            "params": [p for n, p in named.items() if any(x in n for x in plain)],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=RATE, weight_decay=DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for sequences in make_steps():
        total = sum(float(weights.sum()) for _, weights in sequences)
        optimizer.zero_grad()
        loss = 0.0
        for ids, weights in sequences:
            tensor = torch.tensor(ids[None].astype(np.int64))
            logs = model(tensor).logits[0, :-1].log_softmax(-1)
            own = logs.gather(1, tensor[0, 1:, None])[:, 0]
            part = -(own * torch.tensor(weights[1:])).sum() / total
            part.backward()
            loss += float(part.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP)))
        rates.append(schedule.get_last_lr()[0])
        losses.append(loss)
        optimizer.step()
        schedule.step()
    trained = {name: p.detach().numpy().copy() for name, p in named.items()}
    return {"losses": losses, "grad_norms": norms, "rates": rates, "trained": trained}


def train_full() -> dict[str, Any]:
    return train(load_theirs())


def train_lora(rank_stabilized: bool) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        use_rslora=rank_stabilized,
        target_modules=[name.rpartition(".")[2] for name, _, _ in TARGETS.values()],
        lora_dropout=0.0,
    )
    model = get_peft_model(load_theirs(), config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, pair in make_adapters().items():
            for layer in range(LAYERS):
                for which, matrix in zip("AB", pair, strict=True):
                    parameters[adapter_name(name, layer, which)].copy_(
                        torch.tensor(matrix[layer].T)
                    )
    return train(model)


def adapter_name(target: str, layer: int, which: str) -> str:
    """PEFT's name of a matrix."""
    module = f"base_model.model.model.layers.{layer}.{TARGETS[target][0]}"
    return f"{module}.lora_{which}.default.weight"


def sample(name: str, values: np.ndarray) -> list[float]:
    """A few entries of a parameter, the same ones each time."""
    rng = np.random.default_rng(len(name))
    return [round(float(x), 8) for x in values.reshape(-1)[rng.integers(0, values.size, 24)]]


RUNS = {
    "full": train_full,
    "lora": lambda: train_lora(False),
    "rslora": lambda: train_lora(True),
}


def main() -> None:
    expected = {}
    for run, function in RUNS.items():
        result = function()
        result["trained"] = {n: sample(n, v) for n, v in sorted(result["trained"].items())}
        expected[run] = result
    EXPECTED.parent.mkdir(exist_ok=True)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
