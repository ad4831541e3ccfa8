"""The grid from end to end, on made-up tasks and a tiny model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from instructjax.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_split_finetune_evaluate_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "experiments/generalization_grid.py"
    spec = importlib.util.spec_from_file_location("generalization_grid", path)
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = study
    spec.loader.exec_module(study)
    done: list[str] = []

    def run(*words: object) -> None:
        done.append(str(words[0]))
        assert main(list(map(str, words))) == 0

    monkeypatch.setattr(study, "run", run)  # in this process, which has all it needs
    data, out = tmp_path / "rows.jsonl", tmp_path / "grid"
    rows = [
        {"task": f"t{c}", "instruction": f"Say {c}.", "input": f"{c} and {z}", "output": f"{c}"}
        for c in range(6)
        for z in range(6)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [str(data), "--out", str(out), "--model", str(ROOT / "tests/fixtures/llama-tied")]
    options += ["--steps", "2", "--rows", "1", "--row-length", "128", "--max-per-task", "3"]
    study.main(options)
    assert done == ["split", "finetune", "evaluate", "score", "report", "report"]
    numbers = json.loads((out / "numbers.json").read_text())
    assert len(numbers["models"]) == 2
    for found in numbers["models"].values():
        means = {name: one["estimate"] for name, one in found["means"].items() if one}
        gap = means["seen_c_seen_z"] - means["seen_c_unseen_z"]
        assert found["gaps"]["intra"]["estimate"] == pytest.approx(gap, abs=1e-6)
        assert found["verdict"]
    page, tables = (out / "report.html").read_text(), (out / "report.md").read_text()
    for model in numbers["models"]:
        assert model in page and model in tables
    assert 'class="tokens' in page and "fingerprint" in page
    study.main(options)  # what is there is not made again
    assert done[6:] == ["report", "report"]
