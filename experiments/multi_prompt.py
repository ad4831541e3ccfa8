"""MaxP, AvgP and CPS against published values (Mizrahi et al. 2024, arXiv 2401.00595).

    python experiments/multi_prompt.py DATA

DATA is a folder of JSON files with `templates` (each with `correct` and `acc`, an accuracy a model)
and `published` (a value a model for "MaxP", "AvgP" and "CPS", each with "(no filtering)" and
"(correct paraphrases only)"), as in github.com/SLAB-NLP/Multi-Prompt-LLM-Evaluation.
Prints the largest difference of each; exit code 1 if one is above 1e-12.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

from instructjax.generalization import multi_prompt_summary

LIMIT = 1e-12
FIELDS = {"MaxP": "max_p", "AvgP": "avg_p", "CPS": "cps"}


def compare(path: Path) -> dict[str, float]:
    """Largest difference from each published list of a file."""
    data = json.loads(path.read_text())
    found = {}
    for title, values in data["published"].items():
        field = next((field for start, field in FIELDS.items() if title.startswith(start)), None)
        if field is None:
            raise SystemExit(f"{path}: {title!r} is none of {', '.join(FIELDS)}")
        templates = data["templates"]
        if "correct" in title:
            templates = [template for template in templates if template["correct"]]
        differences = []
        for model, value in values.items():
            accuracy = np.array([t["acc"][model] for t in templates if model in t["acc"]])
            with jax.enable_x64(True):
                ours = getattr(multi_prompt_summary(accuracy), field)
            differences.append(abs(float(ours) - value))
        found[title] = max(differences)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of JSON files")
    args = parser.parse_args()
    files = sorted(args.data.glob("*.json"))
    if not files:
        raise SystemExit(f"{args.data}: no JSON files")
    worst = 0.0
    for path in files:
        for title, difference in compare(path).items():
            worst = max(worst, difference)
            print(f"{path.stem}: {title}: {difference:.1e}")
    print(f"largest difference: {worst:.1e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
