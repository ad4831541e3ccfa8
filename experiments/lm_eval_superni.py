"""Super-NaturalInstructions as tasks of lm-evaluation-harness: what `lm_eval_parity` runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The instances of a task say what its labels are, or one instance's response stands among others'.
LABELLED = ("task1393", "task721", "task082")
OPEN = ("task1508", "task1147", "task769")
TEXTS = ("task1290", "task1358")
OPEN_CHOICES = 4

HEAD = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
metadata: {{version: 1.0}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{definition}}\\n\\n{{input}}\\nOutput:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{input}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
"""


def write_tasks(superni: Path, folder: Path, count: int) -> list[str]:
    """Writes YAML and data of each task to a folder; returns the tasks' names.

    Args:
      superni: a folder with a JSONL file a task, with `definition, input, outputs`.
      folder: to write to.
      count: documents a task.
    """
    names = []
    for kind, prefixes in (("labels", LABELLED), ("open", OPEN), ("text", TEXTS)):
        for prefix in prefixes:
            (source,) = superni.rglob(f"{prefix}_*.jsonl")
            rows = [json.loads(line) for line in source.read_text().splitlines()]
            name = f"{prefix}_{kind}"
            file = folder / f"{name}.jsonl"
            documents = [json.dumps(row) + "\n" for row in _documents(rows, kind, count)]
            file.write_text("".join(documents))
            head = HEAD.format(task=name, file=file)
            (folder / f"{name}.yaml").write_text(head + (ROLLING if kind == "text" else CHOICE))
            names.append(name)
    return names


def _documents(rows: list[dict[str, Any]], kind: str, count: int) -> Iterator[dict[str, Any]]:
    labels = sorted({row["outputs"][0] for row in rows})
    for i, row in enumerate(rows[:count]):
        about = {"definition": row["definition"], "input": row["input"]}
        if kind == "text":
            yield about
            continue
        own = row["outputs"][0]
        if kind == "open":  # the responses of the instances that follow
            others = (rows[(i + n) % len(rows)]["outputs"][0] for n in range(1, len(rows)))
            labels = [*dict.fromkeys([own, *others])][:OPEN_CHOICES]
        yield {**about, "choices": labels, "label": labels.index(own)}
