"""`instructjax convert` writes a folder, or says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from instructjax.cli.main import main
from instructjax.finetuning import FinetuneConfig, finetune, load_trained
from instructjax.models import load_model

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"


def test_a_folder_is_written_and_said(tmp_path, tiny_model, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["convert", str(TINY), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out) in said and "in float32" in said and "with its chat template" in said
    again = load_model(out)
    assert jax.tree.all(jax.tree.map(np.array_equal, tiny_model.params, again.params))


def test_what_is_there_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["convert", "no-such/model-anywhere", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "exists already" in error and "Traceback" not in error


def test_a_wrong_size_and_a_wrong_model_are_told(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(TINY), "--out", str(out), "--shard-gb", "0"]) == 2
    assert main(["convert", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "there is no such model" in capsys.readouterr().err and not out.exists()


def test_help_has_an_example(capsys):
    assert main(["convert", "--help"]) == 0
    assert "example: instructjax convert smollm2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with LoRA whose exported model is an adapter."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"instruction": f"Say {n}.", "input": "x", "output": f"y {n}"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"row_length": 64, "rows": 2, "learning_rate": 0.02, "lora_rank": 2}
    config = FinetuneConfig(
        data=(folder / "rows.jsonl",),
        out=folder / "out",
        model=str(TINY),
        train="lora",
        steps=2,
        checkpoint_every=1,
        adapter=True,
        **options,
    )
    for _ in finetune(config):
        pass
    return SimpleNamespace(out=config.out, folder=folder)


def test_a_run_is_written_merged_at_the_step_asked_for(run, tiny_model, capsys):
    for name, step in (("last", []), ("first", ["--step", "1"])):
        out = run.folder / name
        assert main(["convert", str(run.out), "--out", str(out), *step]) == 0
        assert "(fine-tuned)" in capsys.readouterr().out
        wanted = load_trained(run.out, int(step[1]) if step else None)
        written = load_model(out)
        assert jax.tree.all(jax.tree.map(np.array_equal, wanted.params, written.params))
        assert not jax.tree.all(jax.tree.map(np.array_equal, written.params, tiny_model.params))
        assert written.tokenizer.chat_template == tiny_model.tokenizer.chat_template
    assert main(["convert", str(run.out), "--out", str(run.folder / "x"), "--step", "7"]) == 2
    assert "has no checkpoint of step 7" in capsys.readouterr().err


def test_a_run_on_another_layout_has_no_template_that_it_was_not_trained_on(tmp_path, capsys):
    """The base's ChatML would be applied by default, to a model that learned Alpaca's prompts."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"y {n}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, out = tmp_path / "run", tmp_path / "out"
    small = ["--row-length", "128", "--rows", "2", "--steps", "1", "--layout", "alpaca"]
    command = ["finetune", "--model", str(TINY), "--data", str(tmp_path / "rows.jsonl")]
    assert main([*command, "--out", str(run), *small]) == 0
    told = "no chat template: it was trained on the layout alpaca (score it with --layout alpaca)"
    assert f"{run / 'model'} holds step 1; it has {told}" in capsys.readouterr().out
    assert main(["convert", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "without a chat template" in said and f"{out} has {told}" in said
    for folder in (run / "model", out):
        assert not (folder / "chat_template.jinja").exists()
        assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
        assert load_model(folder).tokenizer.chat_template is None


def test_an_adapter_of_a_run_is_that_of_its_export(run, capsys):
    out = run.folder / "adapter"
    assert main(["convert", str(run.out), "--out", str(out), "--adapter"]) == 0
    assert "an adapter for" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["adapter_config.json", "adapter_model.safetensors"]
    for name in os.listdir(out):
        assert (out / name).read_bytes() == (run.out / "model" / name).read_bytes()
    assert main(["convert", str(out), "--out", str(run.folder / "y")]) == 1
    assert "instructjax convert" in capsys.readouterr().err


def test_what_belongs_to_a_run_is_refused_of_a_model(tmp_path, capsys):
    for option in (["--adapter"], ["--step", "3"]):
        assert main(["convert", str(TINY), "--out", str(tmp_path / "o"), *option]) == 2
        assert "is not the folder of a fine-tuning run" in capsys.readouterr().err
