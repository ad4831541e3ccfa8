"""lm-evaluation-harness with tasks of our own, a tiny model, and nothing from the network."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Read when `datasets` is imported, here and in child processes: no network, and not a user's cache.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="instructjax-datasets-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

QUESTIONS = [
    {"question": "Is the sea wet?", "choices": ["yes", "no", "of course not"], "label": 0},
    {"question": "1 + 1 =", "choices": ["3", "2", "two or three"], "label": 1},
    {"question": "The capital of France", "choices": ["was", "is Paris"], "label": 1},
    {"question": "Say nothing.", "choices": ["All right.", "No, I will not."], "label": 0},
]
TEXTS = ["One sentence about the sea.", "Another, and it is longer: " + "they said so. " * 40]

CHOICE_TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_mutual_info}}]
metadata: {{version: 1.0}}
"""
ROLLING_TASK = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
metadata: {{version: 1.0}}
"""
WRITING_TASK = """
task: tiny_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["."]}}
metric_list: [{{metric: exact_match}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple-choice task, a perplexity task and one that generates."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = [{"text": text} for text in TEXTS]
    for name, rows in (("questions", QUESTIONS), ("texts", texts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    for name, task in (("choice", CHOICE_TASK), ("text", ROLLING_TASK), ("writing", WRITING_TASK)):
        (folder / f"{name}.yaml").write_text(task.format(folder=folder))
    return folder


@pytest.fixture
def manager(tasks: Path) -> Any:
    """The harness' own manager of these tasks."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks), include_defaults=False)


@pytest.fixture(scope="session")
def ask() -> Callable[..., Any]:
    """Makes a request of the harness: (*strings, document, request)."""
    from lm_eval.api.instance import Instance

    def make(*strings: str, document: int = 0, request: int = 0) -> Any:
        kind: Any = "loglikelihood" if len(strings) == 2 else "loglikelihood_rolling"
        return Instance(kind, {}, strings, request, ("made", document, 1))

    return make


@pytest.fixture(scope="session")
def sum_by_hand(decode_by_hand: Callable[..., np.ndarray]) -> Callable[..., float]:
    """log Pr of the last `count` ids after the others, by numpy loops in float64."""

    def run(model: Any, ids: list[int], count: int) -> float:
        table = decode_by_hand(model, ids[:-1])
        places = range(len(ids) - count, len(ids))
        return float(sum(table[place - 1, ids[place]] for place in places))

    return run
