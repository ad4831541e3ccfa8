"""An adapter folder in PEFT, and the merged folder in transformers: what `score` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.data import Example
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.loop import finetune
from instructjax.finetuning.restore import load_trained
from instructjax.scoring import make_encoder, score

FIXTURE = str(Path(__file__).parents[1] / "fixtures" / "llama-tied")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

ROWS: list[dict[str, Any]] = [
    {"instruction": f"Say {n}.", "input": "x " * (n % 5), "output": f"y {n}"} for n in range(24)
]


def train(folder: Path, **options: Any) -> Any:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = FinetuneConfig(
        data=(data,),
        out=folder / "run",
        model=FIXTURE,
        row_length=128,
        rows=2,
        steps=5,
        learning_rate=0.02,
        train="lora",
        lora_rank=4,
        **options,
    )
    for _ in finetune(config):
        pass
    return load_trained(config.out)


def log_probs(torch: Any, network: Any, model: Any) -> list[float]:
    """PyTorch's log Pr of the first rows."""
    found = []
    for row in ROWS[:6]:
        (request,) = make_encoder(model).encode(Example(**row), row=0)
        ids = torch.tensor(request.ids.astype(np.int64))[None]
        with torch.no_grad():
            each = torch.log_softmax(network(ids).logits[0].double(), -1)[:-1]
        ((start, stop),) = request.spans
        targets = ids[0, start:stop, None]
        found.append(float(each[start - 1 : stop - 1].gather(1, targets).sum()))
    return found


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_peft_loads_the_adapter(tmp_path: Path, rank_stabilized: bool) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = train(tmp_path, adapter=True, lora_rank_stabilized=rank_stabilized)
    base = transformers.AutoModelForCausalLM.from_pretrained(FIXTURE, dtype=torch.float32)
    plain = log_probs(torch, base, model)
    network = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "model")).eval()
    found = log_probs(torch, network, model)
    ours = score(model, [Example(**row) for row in ROWS[:6]]).log_prob
    np.testing.assert_allclose(found, np.asarray(ours), atol=5e-4)
    assert np.abs(np.asarray(found) - plain).min() > 0.1  # the adapter does something
    # on its own, PEFT finds the base
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(
        str(tmp_path / "run" / "model"), dtype=torch.float32
    )
    np.testing.assert_allclose(log_probs(torch, alone.eval(), model), found, atol=1e-5)


def test_transformers_loads_the_merged_folder(tmp_path: Path) -> None:
    pytest.importorskip("instructjax.models.checkpoints.export")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = train(tmp_path)
    folder = tmp_path / "run" / "model"
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = log_probs(torch, network.eval(), model)
    ours = score(model, [Example(**row) for row in ROWS[:6]]).log_prob
    np.testing.assert_allclose(found, np.asarray(ours), atol=5e-4)
