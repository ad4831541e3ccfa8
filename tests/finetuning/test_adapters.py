"""What an adapter folder says of its base, where it is no folder of PEFT's kind either."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from instructjax.finetuning.adapters import write_adapter
from instructjax.finetuning.partition import split_params
from instructjax.models.lora import LORA, LoraConfig, add_lora

NAMED = "base_model_name_or_path"


@pytest.mark.parametrize("spec", ["a base", "name/with-slash", "b.gguf", "pypi:some-wheel==1.0"])
def test_the_base_is_named_so_that_it_is_found(spec, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a base").mkdir()
    Path("b.gguf").touch()
    options = LoraConfig(rank=2, alpha=4.0)
    _, params = add_lora(tiny_model.graphdef, tiny_model.params, options, jax.random.key(0))
    lora, _ = split_params(params, LORA)
    write_adapter(tiny_model, lora, options, Path("out"), base=spec)
    said = json.loads(Path("out/adapter_config.json").read_text())[NAMED]
    readme = Path("out/README.md")
    if spec in ("a base", "name/with-slash"):
        assert said == (str(tmp_path / "a base") if spec == "a base" else spec)
        assert not readme.exists()
    else:
        assert f"instructjax convert {spec} --out FOLDER" in readme.read_text()
