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
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
            *(
                "finetune",
                "--data",
                split / "train.jsonl",
                "--out",
                tuned,
                "--model",
                options.model,
            ),
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
    run(
        *("report", results, split / "split.json", scores),
        *("--smallest-gap", options.smallest_gap, "--figures", out / "figures"),
        *("--out", out / "report.html", "--overwrite"),
    )
    print(f"\nopen {out / 'report.html'}")


if __name__ == "__main__":
    main()
