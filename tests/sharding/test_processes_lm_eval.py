"""lm-evaluation-harness in process 0, computed by all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.main import main

TINY = Path(__file__).parents[1] / "fixtures" / "llama-tied"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{rest}
"""
CHOICE = """doc_to_choice: ["yes", "no", "of course"]
metric_list: [{metric: acc}, {metric: acc_norm}]"""
ROLLING = "metric_list: [{metric: bits_per_byte}]"
WRITING = "generation_kwargs: {until: ['.']}\nmetric_list: [{metric: exact_match}]"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    rows = [{"question": f"Is {n} " + "very " * (n % 5) + "odd?", "label": n % 3} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, target, rest in (
        ("choice", "multiple_choice", "label", CHOICE),
        ("text", "loglikelihood_rolling", '"{{question}}"', ROLLING),
        ("writing", "generate_until", "label", WRITING),
    ):
        text = TASK.format(name=name, kind=kind, folder=tmp_path, target=target, rest=rest)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def command(tasks: Path, names: str, out: Path, *options: Any) -> list[Any]:
    words = ["lm-eval", "--tasks", names, "--model", TINY, "--include-path", tasks, "--out", out]
    return [str(word) for word in (*words, *options)]


def test_two_processes_give_the_results_of_one(start, tasks, tmp_path):
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    assert main(command(tasks, "choice,text", alone)) == 0
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    words = command(tasks, "choice,text", both, "--mesh", "fsdp=4")
    first, second = start(words, **offline).ends()
    assert first.code == second.code == 0, (first.err, second.err)
    assert "wrote " in first.out and "choice" not in second.out
    found, expected = (json.loads(file.read_text()) for file in (both, alone))
    assert found["results"] == expected["results"]
    for task in ("choice", "text"):
        ours, theirs = (
            [sample["filtered_resps"] for sample in each["samples"][task]]
            for each in (found, expected)
        )
        assert len(ours) == 9 and ours == theirs


def test_responses_are_for_one_process(start, tasks, tmp_path):
    words = command(tasks, "choice,writing", tmp_path / "out.json")
    first, second = start(words, HF_HUB_OFFLINE="1").ends()
    # Before anything is scored.
    assert first.code == 2 and "writing asks for responses, which one process" in first.err
    assert second.code == 2 and "process 0 stopped" in second.err
