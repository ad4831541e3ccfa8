"""How well does an instruct model do the test tasks of Super-NaturalInstructions?

    python experiments/evaluate_superni.py DATA --out results.parquet

DATA is a folder of the test tasks, one JSONL file a task with `task, category, definition, input,
outputs, index, id`. All instances are evaluated, or the first of each task (`index` below
--instances; 100 in the official protocol), zero-shot, the definition as c and the input as z. For
each the table has log Pr of the likeliest reference, and ROUGE-L (stemmer, F, maximum over
references) and exact match of the greedy response. A run that is stopped goes on with the same
command. To --results go a JSON and a Markdown file with means over instances and over tasks, and
the whole table, a row an instance and metric, as evaluation_superni.parquet.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from instructjax.cli.main import main as instructjax
from instructjax.evaluation import clustered_mean, count_flags, read_evaluation
from instructjax.evaluation.table import read_evaluation_table

METRICS = ("log_prob", "log_prob_per_token", "rouge_l", "exact_match", "f1")


def choose_rows(data: Path, instances: int | None, out: Path) -> int:
    """Writes the (first) instances of every task, task after task in turn; returns how many."""
    rows: list[dict[str, Any]] = []
    for file in sorted(data.glob("*.jsonl")):
        read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows += [row for row in read if instances is None or row["index"] < instances]
    rows.sort(key=lambda row: (row["index"], row["task"]))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not out.exists() or out.read_text(encoding="utf-8") != text:
        out.write_text(text, encoding="utf-8")
    return len(rows)


def summarize(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means of every metric: by task, over instances, and over tasks."""
    tasks: dict[str, Any] = {}
    for task in sorted(set(columns["task"])):
        rows = {}
        for metric in METRICS:
            at = (columns["task"] == task) & (columns["metric"] == metric)
            values = columns["value"][at]
            rows[metric] = float(np.nanmean(values))
            rows["instances"] = len(values)
            rows["category"] = str(columns["category"][at][0])
        tasks[task] = rows
    overall = {}
    for metric in METRICS:
        at = (columns["metric"] == metric) & ~np.isnan(columns["value"])
        mean, error, count = clustered_mean(
            columns["value"][at], columns["instruction_hash"][at].astype(str)
        )
        overall[metric] = {
            "mean_over_instances": mean,
            "standard_error_by_instruction": error,
            "instructions": count,
            "mean_over_tasks": float(np.mean([rows[metric] for rows in tasks.values()])),
        }
    return {"overall": overall, "tasks": tasks, "flags": [str(x) for x in count_flags(columns)]}


def to_markdown(found: dict[str, Any]) -> str:
    """The same as a table for a person."""
    first = "all" if found["instances"] is None else f"`index` < {found['instances']}"
    lines = [
        f"# {found['model']} on Super-NaturalInstructions",
        "",
        f"{found['rows']} instances of {len(found['tasks'])} test tasks ({first}), zero-shot, "
        f"greedy, at most {found['max_new_tokens']} new tokens, float32. ROUGE-L, exact match and "
        "F1 times 100; log Pr in nats of the likeliest reference, with its end of turn. SE: over "
        "instances, clustered by instruction.",
        "",
        "Every instance under every metric, with the response: `evaluation_superni.parquet`, which "
        "`instructjax.evaluation.read_evaluation` reads. Written by `python "
        f"experiments/evaluate_superni.py DATA --out table.parquet --max-new-tokens "
        f"{found['max_new_tokens']}`.",
        "",
        *(f"- {flag}" for flag in found["flags"]),
        *([""] if found["flags"] else []),
        "| task | category | instances | log Pr | log Pr a token | ROUGE-L | exact match | F1 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task, rows in found["tasks"].items():
        lines.append(
            f"| {task} | {rows['category']} | {rows['instances']} | {rows['log_prob']:.2f} | "
            f"{rows['log_prob_per_token']:.2f} | {100 * rows['rouge_l']:.1f} | "
            f"{100 * rows['exact_match']:.1f} | {100 * rows['f1']:.1f} |"
        )
    for label, key in (
        ("mean over instances", "mean_over_instances"),
        ("SE", "standard_error_by_instruction"),
        ("mean over tasks", "mean_over_tasks"),
    ):
        cells = [found["overall"][metric][key] for metric in METRICS]
        log_prob, per_token, *rest = cells
        shown = [f"{log_prob:.2f}", f"{per_token:.2f}", *(f"{100 * x:.1f}" for x in rest)]
        lines.append(f"| **{label}** | | | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--instances", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    chosen = args.out.with_name(f"{args.out.stem}.rows.jsonl")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = choose_rows(args.data, args.instances, chosen)
    call = ["evaluate", "--model", args.model, "--data", chosen, "--out", args.out]
    call += ["--metrics", ",".join(METRICS), "--max-new-tokens", args.max_new_tokens]
    if not args.out.exists() and (code := instructjax([str(word) for word in call])):
        return code
    columns = read_evaluation(args.out)
    found = {
        "model": str(columns["model"][0]),
        "rows": rows,
        "instances": args.instances,
        "max_new_tokens": args.max_new_tokens,
        **summarize(columns),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (args.results / "evaluation_superni.json").write_text(text, encoding="utf-8")
    markdown = to_markdown(found)
    (args.results / "evaluation_superni.md").write_text(markdown, encoding="utf-8")
    table = read_evaluation_table(args.out)
    target = args.results / "evaluation_superni.parquet"
    pq.write_table(table, target, compression="zstd", compression_level=19)
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
