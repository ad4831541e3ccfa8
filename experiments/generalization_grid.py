"""One real grid from end to end: split, fine-tune, evaluate, report.

    python experiments/generalization_grid.py DATA --out grid

DATA is a folder of Super-NaturalInstructions tasks (.jsonl or .json files, one a task), or any data
with tasks. A fifth of the tasks and a fifth of the inputs of the others are held out; the embedded
model is fine-tuned briefly on the rest; it and the model before are evaluated on all four cells of
seen and unseen instructions and inputs; one page says at which level it generalizes. Each step is a
command of `instructjax` that could be typed, and is printed; what is there already is not done
again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instructjax.generalization.split_recipes import CELLS
from instructjax.report import make_page, read_results

BASE = "smollm2-135m-instruct"


def run(*words: object) -> None:
    """Runs one command of instructjax, after showing it; ends the program where it fails."""
    line = list(map(str, words))
    print(f"\n$ {shlex.join(['instructjax', *line])}", flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "instructjax", *line]).returncode
    if code:
        sys.exit(code)
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Does all steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("grid"))
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--by", default="task")
    parser.add_argument("--unseen-instructions", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--row-length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--max-per-task", type=int, default=12)
    parser.add_argument("--metrics", default="log_prob_per_token")
    parser.add_argument("--smallest-gap", type=float, default=0.1)
    options = parser.parse_args(argv)
    out: Path = options.out
    split, tuned, results = out / "split", out / "tuned", out / "results.parquet"
    scores = out / "scores.parquet"
    out.mkdir(parents=True, exist_ok=True)
    if not (split / "split.json").exists():
        limit = ("--max-per-task", options.max_per_task)
        unseen = ("--fraction-unseen-instructions", options.unseen_instructions)
        run("split", options.data, "--by", options.by, *unseen, *limit, "--out", split)
    if not (tuned / "model" / "config.json").exists():
        run(
            *("finetune", "--data", split / "train.jsonl", "--out", tuned),
            *("--model", options.model),
            *("--steps", options.steps, "--learning-rate", options.learning_rate),
            *("--row-length", options.row_length, "--rows", options.rows),
        )
    if not results.exists():
        run(
            *("evaluate", "--data", split / "eval.jsonl", "--metrics", options.metrics),
            *("--model", tuned / "model", "--model", options.model),
            *("--truncation", "middle", "--out", results),
        )
    if not scores.exists():
        run(
            *("score", split / "eval.jsonl", "--model", tuned / "model"),
            *("--contexts", "cz,c,z,none", "--truncation", "middle", "--out", scores),
        )
    for name in ("report.html", "report.md"):
        figures = ("--figures", out / "figures") if name == "report.html" else ()
        run(
            *("report", results, split / "split.json", scores, *figures),
            *("--smallest-gap", options.smallest_gap, "--tokenizer", tuned / "model"),
            *("--out", out / name, "--overwrite"),
        )
    numbers = summarize(out, options.smallest_gap)
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"\nopen {out / 'report.html'}")


def summarize(out: Path, smallest_gap: float) -> dict[str, Any]:
    """What was split and learned, and of each model the cell means, the gaps and the verdict."""
    found = read_results([out / "results.parquet"])
    split = json.loads((out / "split" / "split.json").read_text(encoding="utf-8"))
    done = json.loads((out / "tuned" / "done.json").read_text(encoding="utf-8"))
    models = {}
    for model in found.models:
        analysis = make_page(found, model=model, smallest_gap=smallest_gap).analysis
        models[model] = {
            "verdict": analysis.verdict,
            "scores": dict(zip(CELLS, analysis.counts.tolist(), strict=True)),
            "instructions": dict(zip(CELLS, analysis.num_instructions.tolist(), strict=True)),
            "means": {
                name: asdict(one) if one else None
                for name, one in zip(CELLS, analysis.cells, strict=True)
            },
            "gaps": asdict(analysis.gaps),
        }
    return {"split": split, "finetuning": done, "smallest_gap": smallest_gap, "models": models}


if __name__ == "__main__":
    main()
