"""Every family's export is accepted by transformers and computes the same there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from instructjax.models.checkpoints.export import export_folder
from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.checkpoints.hf_tensors_out import hf_entries
from instructjax.models.checkpoints.params import load_params
from instructjax.models.checkpoints.safetensors_out import write_entries
from instructjax.models.families.to_hf import config_to_hf
from instructjax.models.model import load_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = sorted(
    str(path.parent.relative_to(FIXTURES))
    for path in [*FIXTURES.glob("*/config.json"), *FIXTURES.glob("families/*/config.json")]
    if "quantization_config" not in path.read_text()
)


@pytest.mark.torch
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_it_and_gives_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    family, config, weights = open_folder(FIXTURES / name)
    params = load_params(family, config, weights, "float32")
    write_entries(tmp_path / "model.safetensors", hf_entries(family, config, params))
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(family, config)))

    def logits(folder):
        options = {"attn_implementation": "eager", "output_loading_info": True}
        read: Any = AutoModelForCausalLM.from_pretrained
        model, about = read(str(folder), dtype=torch.float32, **options)
        assert not about["missing_keys"] and not about["unexpected_keys"]
        # The initial values of tensors that are no parameters may differ from run to run.
        length = min(60, config.max_positions)
        ids = torch.arange(3, 3 + length)[None] % config.vocab_size
        with torch.no_grad():
            return model.eval()(ids).logits

    wanted, found = logits(FIXTURES / name), logits(tmp_path)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_a_padding_token_beyond_the_embedding_is_no_row_of_it(tmp_path):
    """Added to a tokenizer to pad with, it has no row; transformers looks for one at the id."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "llama-tied", source)
    told = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**told, "pad_token": "[PAD]"}))
    model = load_model(source)
    out = export_folder(model, tmp_path / "out")
    read: Any = AutoModelForCausalLM.from_pretrained
    rows = read(str(out), dtype=torch.float32).get_input_embeddings().weight
    assert len(rows) == model.config.vocab_size
    theirs = AutoTokenizer.from_pretrained(str(out))
    assert theirs.pad_token == "[PAD]" and theirs.pad_token_id >= len(rows)
