"""Every family, trained in full and with LoRA at once: merged folder, and adapter, in PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from instructjax.finetuning.adapters import write_adapter
from instructjax.finetuning.batch import WeightedIds, make_sft_batch
from instructjax.finetuning.optimizers import OptimizerConfig, make_optimizer
from instructjax.finetuning.partition import split_params
from instructjax.finetuning.state import make_state
from instructjax.finetuning.step import make_train_step
from instructjax.models import Model
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.hf_tensors_out import hf_entries
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors_out import write_entries
from instructjax.models.families import FAMILIES, family_of
from instructjax.models.families.to_hf import config_to_hf
from instructjax.models.lora import LORA, LoraConfig, add_lora, merge_lora
from instructjax.models.model import abstract_decoder, fill

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
CASES = {
    "llama": "llama-past-linear",
    "qwen2": "qwen2-tied",
    "qwen3": "qwen3-bias-yarn",
    "mistral": "mistral-full",
    "ministral": "ministral-mixed",
    "smollm3": "smollm3-window-bias",
    "gemma": "gemma-one-kv-head",
    "gemma2": "gemma2-untied",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2-tied-bias",
    "olmo3": "olmo3",
    "phi3": "phi3-window",
    "granite": "granite-bias",
    "gpt_neox": "gpt-neox",
    "gpt2": "gpt2",
    "stablelm": "stablelm-parallel",
    "cohere": "cohere-qk-norm",
    "cohere2": "cohere2",
    "mixtral": "mixtral-window",
    "qwen3_moe": "qwen3-moe",
    "olmoe": "olmoe",
    "gpt_oss": "gpt-oss",
    "deepseek_v3": "deepseek-v3",
}


def read(name: str, tokenizer: Any) -> Model:
    """A fixture of a family as a model, with any tokenizer."""
    family, config, weights = open_folder(FOLDER / name)
    params = load_params(family, config, weights, np.float32)
    graphdef, abstract = abstract_decoder(config, "float32")
    return dataclasses.replace(
        tokenizer, config=config, graphdef=graphdef, params=fill(abstract, params)
    )


def write(folder: Path, model: Model, params: Any) -> Path:
    folder.mkdir()
    family = family_of(model.config)
    entries = hf_entries(family, model.config, nnx.to_pure_dict(params))
    write_entries(folder / "model.safetensors", entries)
    (folder / "config.json").write_text(json.dumps(config_to_hf(family, model.config)))
    return folder


def test_every_family_is_shown() -> None:
    assert CASES.keys() == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("family", CASES)
def test_what_was_trained_is_what_pytorch_computes(
    family: str, tmp_path: Path, tiny_model: Any
) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = read(CASES[family], tiny_model)
    options = LoraConfig(rank=3, alpha=5.0, rank_stabilized=True)
    graphdef, params = add_lora(model.graphdef, model.params, options, jax.random.key(0))
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 80, (2, 30)).astype(np.int32)
    rows = [[WeightedIds(ids=row, weights=(np.arange(30) > 0).astype(np.float32))] for row in ids]
    batch = jax.tree.map(jnp.asarray, make_sft_batch(rows, length=29, tile=32))
    optimizer = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), 9)
    state = make_state(params, optimizer)  # everything learns: base, A and B
    quickly = {"xla_backend_optimization_level": "0"}
    step = jax.jit(make_train_step(graphdef, optimizer), compiler_options=quickly)
    state, first = step(state, batch)
    trained, _ = step(state, batch)
    # Only one program: the loss before a third step is that of the parameters after the second.
    loss = float(step(jax.tree.map(jnp.copy, trained), batch)[1].loss)
    assert abs(loss - float(first.loss)) > 1e-2

    lora, base = split_params(trained.params, LORA)
    merged = merge_lora(graphdef, trained.params)[1]

    def mean_loss(network: Any) -> float:
        each = []
        with torch.no_grad():
            for row in ids:  # one by one, the last token not fed: dynamic scaling would count it
                logits = network(torch.tensor(row[None, :-1]).long(), use_cache=False).logits[0]
                logs = torch.log_softmax(logits.double(), -1)
                each.append(logs.gather(1, torch.tensor(row[1:, None]).long()))
        return -float(torch.cat(each).mean())

    def network(folder: Path) -> Any:
        options: Any = {"attn_implementation": "eager", "output_loading_info": True}
        read: Any = AutoModelForCausalLM.from_pretrained
        found, about = read(str(folder), dtype=torch.float32, **options)
        assert not about["missing_keys"] and not about["unexpected_keys"]
        return found.eval()

    found = mean_loss(network(write(tmp_path / "merged", model, merged)))
    assert found == pytest.approx(loss, abs=1e-4)

    plain = network(write(tmp_path / "base", model, base))
    without = mean_loss(plain)
    assert abs(without - loss) > 1e-3, "the adapter would do nothing"
    write_adapter(model, lora, options, tmp_path / "adapter", base=str(tmp_path / "base"))
    linear = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    network_too = peft.get_peft_model(network(tmp_path / "base"), linear)
    wanted = set(peft.utils.get_peft_model_state_dict(network_too))
    adapted = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    stored = peft.utils.get_peft_model_state_dict(adapted)
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(stored) == set(written), "PEFT has a place for each matrix, and no other"
    if not model.config.num_experts:
        assert set(written) == wanted, "and it is what PEFT's all-linear is"
    assert mean_loss(adapted) == pytest.approx(loss, abs=1e-4)
