"""Are the numbers right? Log-probs of real rows against transformers on PyTorch, float32.

    python experiments/parity.py rows.jsonl more.jsonl --every 5

Scores the same token ids with both, on the embedded default model, and prints the largest
difference in nats a token by file. Exit code 1 if any is above 1e-4. Needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    table = Table(title="instructjax against transformers on PyTorch, float32")
    for name in ("file", "responses", "tokens scored", "max nats a token", "max nats a response"):
        table.add_column(name, justify="left" if name == "file" else "right")
    worst = 0.0
    for path in args.data:
        rows = [row for row in ij.read_examples(path) if isinstance(row, ij.Example)]
        requests = [
            request
            for i, example in enumerate(rows[:: args.every])
            for request in encoder.encode(example, row=i)
        ]
        ours = [s.log_prob for s in ij.score_requests(model, requests)]
        (theirs,) = run_peers(requests, tools=["transformers"], batch_sizes=[1])
        gaps = [abs(a - b) for a, b in zip(ours, theirs["scores"], strict=True)]
        by_token = [gap / r.num_tokens for gap, r in zip(gaps, requests, strict=True)]
        worst = max(worst, *by_token)
        tokens = sum(r.num_tokens for r in requests)
        table.add_row(
            Path(path).name,
            f"{len(requests)}",
            f"{tokens:,}",
            f"{max(by_token):.1e}",
            f"{max(gaps):.1e}",
        )
    Console().print(table)
    print(f"largest difference {worst:.1e} nats a token, limit {LIMIT:.0e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
