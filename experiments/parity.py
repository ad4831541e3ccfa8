"""Are the numbers right? Log-probs of real rows against transformers on PyTorch, float32.

    python experiments/parity.py rows.jsonl more.jsonl --every 5 --out parity.json

Scores the same token ids with both, on the embedded default model, and prints the largest
difference of any token, in nats, by file. Float32 is no reference where a token is badly
conditioned: a response with a token above 1e-4 is scored once more in float64, and the distances of
both from that are printed. Exit code 1 if a token of ours is further than 1e-4 from both PyTorch's
float32 and float64. Needs the `compare` extra.
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
from written import write_report

LIMIT = 1e-4


def run_transformers(model: ij.Model, requests: list[ij.Request], dtype: str) -> list[np.ndarray]:
    """Log-probs of each request's scored tokens, one request at a time."""
    options = {"tools": ["transformers"], "batch_sizes": [1], "dtype": dtype}
    (found,) = run_peers(model.config, requests, **options)["results"]
    return [np.array(scores) for scores in found["scores"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help="data files")
    parser.add_argument("--every", type=int, default=1, help="take one row in so many")
    parser.add_argument("--out", type=Path, help="JSON file to write, and a table beside it (.md)")
    args = parser.parse_args()

    model = ij.load_model("smollm2-135m-instruct", dtype="float32")
    encoder = ij.PromptEncoder(model.tokenizer, ij.PromptOptions())
    table = Table(title="|instructjax - transformers on PyTorch|, float32, nats, token by token")
    for name in ("file", "responses", "rejected rows", "tokens", "mean", "largest", "> 1e-4"):
        table.add_column(name, justify="left" if name == "file" else "right")
    apart = Table(title="tokens above 1e-4: distance from float64, nats")
    for name in ("file", "response", "token", "log-prob", "ours", "PyTorch float32", "between"):
        apart.add_column(name, justify="left" if name == "file" else "right")
    wrong, files = 0, []
    for path in args.data:
        rows = list(ij.read_examples(path))
        examples = [row for row in rows if isinstance(row, ij.Example)]
        requests = [
            request
            for i, example in enumerate(examples[:: args.every])
            for request in encoder.encode(example, row=i)
        ]
        ours = [s.token_log_probs for s in ij.score_requests(model, requests)]
        theirs = run_transformers(model, requests, "float32")
        gaps = [np.abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        every = np.concatenate(gaps)
        if not np.isfinite(every).all():
            raise SystemExit(f"{path}: a log-prob is no finite number")
        files.append(
            {
                "file": Path(path).name,
                "responses": len(requests),
                "tokens": len(every),
                "mean": float(every.mean()),
                "largest": float(every.max()),
                "above": int((every > LIMIT).sum()),
            }
        )
        table.add_row(
            Path(path).name,
            f"{len(requests):,}",
            f"{len(rows) - len(examples):,}",
            f"{len(every):,}",
            f"{every.mean():.1e}",
            f"{every.max():.1e}",
            f"{(every > LIMIT).sum()}",
        )
        again = [i for i, gap in enumerate(gaps) if gap.max() > LIMIT]
        chosen = [requests[i] for i in again]
        exact = run_transformers(model, chosen, "float64") if again else []
        for i, reference in zip(again, exact, strict=True):
            for t in np.flatnonzero(gaps[i] > LIMIT):
                own, other = abs(ours[i][t] - reference[t]), abs(theirs[i][t] - reference[t])
                wrong += own > LIMIT
                apart.add_row(
                    Path(path).name,
                    f"{i + 1}",
                    f"{t + 1}",
                    f"{reference[t]:.2f}",
                    f"{own:.1e}",
                    f"{other:.1e}",
                    f"{gaps[i][t]:.1e}",
                )
    console = Console()
    console.print(table)
    if apart.row_count:
        console.print(apart)
    summary = f"tokens further than {LIMIT:.0e} from both: {wrong}"
    print(summary)
    if args.out:
        report = {
            "every": args.every,
            "limit": LIMIT,
            "files": files,
            "further_from_both": int(wrong),
        }
        parts = [table, *([apart] if apart.row_count else []), summary]
        write_report(args.out, report, "instructjax against PyTorch, token by token", parts)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
