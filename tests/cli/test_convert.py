"""`instructjax convert` writes a folder, or says why not."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from instructjax.cli.main import main
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
