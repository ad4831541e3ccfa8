"""Are the numbers right? Log-probs of real rows against transformers on PyTorch, float32.

    python experiments/parity.py rows.jsonl more.jsonl --every 5

Scores the same token ids with both, on the embedded default model, and prints the largest
difference of any token, in nats, by file. Exit code 1 if any is above 1e-4. Needs the `compare`
extra.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import instructjax as ij

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from scoring import run_peers

LIMIT = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help="data files")
    parser.add_argument("--every", type=int, default=1, help="take one row in so many")
    args = parser.parse_args()

    model = ij.load_model("smollm2-135m-instruct", dtype="float32")
    encoder = ij.PromptEncoder(model.tokenizer, ij.PromptOptions())
    table = Table(title="|instructjax - transformers on PyTorch|, float32, nats, token by token")
    for name in ("file", "responses", "rejected rows", "tokens", "largest", "mean"):
        table.add_column(name, justify="left" if name == "file" else "right")
    worst = 0.0
    for path in args.data:
        rows = list(ij.read_examples(path))
        examples = [row for row in rows if isinstance(row, ij.Example)]
        requests = [
            request
            for i, example in enumerate(examples[:: args.every])
            for request in encoder.encode(example, row=i)
        ]
        ours = [s.token_log_probs for s in ij.score_requests(model, requests)]
        (theirs,) = run_peers(requests, tools=["transformers"], batch_sizes=[1])
        pairs = zip(ours, theirs["scores"], strict=True)
        gaps = np.concatenate([np.abs(a - np.array(b)) for a, b in pairs])
        if not np.isfinite(gaps).all():
            raise SystemExit(f"{path}: a log-prob is no finite number")
        worst = max(worst, float(gaps.max()))
        table.add_row(
            Path(path).name,
            f"{len(requests):,}",
            f"{len(rows) - len(examples):,}",
            f"{len(gaps):,}",
            f"{gaps.max():.1e}",
            f"{gaps.mean():.1e}",
        )
    Console().print(table)
    print(f"largest difference {worst:.1e} nats a token, limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
