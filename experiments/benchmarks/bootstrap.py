"""How long do 10^4 bootstrap draws of 10^5 scores take?

    python experiments/benchmarks/bootstrap.py --out bootstrap.json

Crossed (250 instructions x 400 inputs) and nested (100 tasks x 1,000 inputs of their own), product
and pigeonhole weights. Times are of a second call, compilation apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax

from instructjax.generalization import crossed_bootstrap, nested_bootstrap
from instructjax.generalization.bootstrap import Kind


def measure(run: Any, score: jax.Array) -> dict[str, float]:
    start = time.perf_counter()
    compiled = jax.jit(run).lower(jax.random.key(0), score).compile()
    ready = time.perf_counter()
    jax.block_until_ready(compiled(jax.random.key(0), score))
    first = time.perf_counter()
    jax.block_until_ready(compiled(jax.random.key(1), score))
    return {"compile": ready - start, "run": time.perf_counter() - first}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    crossed = jax.random.normal(jax.random.key(0), (250, 400))
    nested = jax.random.normal(jax.random.key(0), (100, 1000))
    results = {}
    for kind in get_args(Kind):

        def run_crossed(key, score, kind=kind):
            return crossed_bootstrap(key, score, draws=args.draws, kind=kind)

        results[f"crossed, {kind}"] = measure(run_crossed, crossed)

    def run_nested(key, score):
        return nested_bootstrap(key, score, draws=args.draws)

    results["nested, exponential"] = measure(run_nested, nested)
    lines = [
        f"Seconds of {args.draws:,} bootstrap draws of the mean of 10^5 scores, compilation apart "
        "(`experiments/benchmarks/bootstrap.py`)",
        "",
        "| bootstrap | compile | run |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {found['compile']:.2f} | {found['run']:.2f} |"
        for name, found in results.items()
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if args.out:
        args.out.write_text(json.dumps({"draws": args.draws, "seconds": results}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
