"""How many positions rows in random order take for each distinct token: nothing is scored.

    python experiments/benchmarks/interleaved.py --out interleaved.json

Files of 8,000 rows of random ids, each with one of 240 instructions (lengths log-normal around 200,
400 and 1,200 tokens) and an input and response of its own, as a shuffled file of many tasks has
them. They are cut into chunks and packed as `instructjax score` does it. Beside it, each row shares
with the row before it alone. Then 200 requests of 100 tokens of their own behind one long prefix,
and requests that share nothing.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from written import write_report

from instructjax.batching.packing import pack
from instructjax.batching.prefix_tree import build_tree, common_prefix, input_ids
from instructjax.data import Example
from instructjax.prompts import Request
from instructjax.scoring.runs.chunks import make_chunks

PREFIXES = sorted([300, *range(500, 12_001, 500), 6150])


def make_rows(instructions: int, length: int, rows: int, *, seed: int = 0) -> list[Request]:
    """One request a row."""
    rng = np.random.default_rng(seed)

    def draw(median: float, spread: float) -> np.ndarray:
        size = int(np.clip(rng.lognormal(np.log(median), spread), 5, 2000))
        return rng.integers(0, 49_000, size).astype(np.int32)

    prompts = [draw(length, 0.4) for _ in range(instructions)]
    found = []
    for row in range(rows):
        ids = [prompts[rng.integers(instructions)], draw(65, 0.7), draw(8, 0.7)]
        start, stop = len(ids[0]) + len(ids[1]), sum(map(len, ids))
        span = (start, stop)
        found.append(Request(ids=np.concatenate(ids), spans=(span,), num_bytes=1, row=row))
    return found


def make_branches(prefix: int, *, count: int = 200, own: int = 100, seed: int = 0) -> list[Request]:
    """Requests that need `own` tokens each behind one prefix."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, 49_000, prefix)
    ids = [np.concatenate([stem, rng.integers(0, 49_000, own + 1)]) for _ in range(count)]
    span = (prefix, prefix + own + 1)
    return [Request(ids=one.astype(np.int32), spans=(span,), num_bytes=1) for one in ids]


def measure_branches(prefix: int) -> dict[str, int]:
    """Tokens distinct and computed, positions, and the longest row."""
    requests = make_branches(prefix)
    lengths = [(row.num_tokens, row.batch.tokens.size) for row in pack(requests)]
    return {
        "prefix_tokens": prefix,
        "distinct": build_tree(requests).num_distinct,
        "computed": sum(tokens for tokens, _ in lengths),
        "positions": sum(size for _, size in lengths),
        "longest_row": max(size for _, size in lengths),
    }


def measure_lengths(low: int, high: int, *, count: int = 400, seed: int = 0) -> float:
    """Share of positions that hold a token, of requests of uniform lengths that share nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for size in rng.integers(low, high + 1, count).tolist():
        ids = rng.integers(0, 49_000, size).astype(np.int32)
        made.append(Request(ids=ids, spans=((size - 5, size),), num_bytes=1))
    rows = list(pack(made))
    return sum(row.num_tokens for row in rows) / sum(row.batch.tokens.size for row in rows)


def measure(requests: list[Request]) -> dict[str, float]:
    """Tokens asked for, distinct and computed, and positions."""
    example = Example(instruction="c", output="y")
    chunks = list(make_chunks([example] * len(requests), lambda _, row: [requests[row]]))
    packed = [
        row
        for chunk in chunks
        for row in pack([request for one in chunk.rows for request in one.requests])
    ]
    inputs = [input_ids(request) for request in requests]
    asked = sum(map(len, inputs))
    return {
        "rows": len(requests),
        "requested": asked,
        "distinct": build_tree(requests).num_distinct,
        "new_to_the_row_before": asked - sum(common_prefix(a, b) for a, b in pairwise(inputs)),
        "computed": sum(row.num_tokens for row in packed),
        "positions": sum(row.batch.tokens.size for row in packed),
        "chunks": len(chunks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instructions", type=int, default=240)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 400, 1200])
    parser.add_argument("--prefixes", type=int, nargs="+", default=PREFIXES)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--out", type=Path, default="interleaved.json", help="JSON, and .md beside")
    args = parser.parse_args()
    table = Table(title=f"{args.instructions} instructions in random order, for a distinct token")
    names = ("instruction", "rows", "distinct tokens", "chunks", "requested", "neighbours", "ours")
    for name in names:
        table.add_column(name, justify="right")
    runs = []
    for length in args.lengths:
        found = measure(make_rows(args.instructions, length, args.rows))
        runs.append({"instruction_tokens": length, **found})
        counts = (found[x] for x in ("requested", "new_to_the_row_before", "positions"))
        table.add_row(
            f"{length:,}",
            f"{found['rows']:,}",
            f"{found['distinct']:,}",
            f"{found['chunks']}",
            *(f"{share / found['distinct']:.2f}" for share in counts),
        )
    branches = Table(title="200 requests of 100 tokens behind one prefix, for a distinct token")
    for name in ("prefix", "distinct tokens", "tokens computed", "positions", "longest row"):
        branches.add_column(name, justify="right")
    behind = [measure_branches(prefix) for prefix in args.prefixes]
    for one in behind:
        branches.add_row(
            f"{one['prefix_tokens']:,}",
            f"{one['distinct']:,}",
            *(f"{one[name] / one['distinct']:.2f}" for name in ("computed", "positions")),
            f"{one['longest_row']:,}",
        )
    apart = Table(title="400 requests that share nothing, lengths uniform")
    for name in ("lengths", "useful share of positions"):
        apart.add_column(name, justify="right")
    shares = {bounds: measure_lengths(*bounds) for bounds in ((20, 700), (1030, 2000))}
    for (low, high), share in shares.items():
        apart.add_row(f"{low:,} to {high:,}", f"{share:.3f}")
    Console().print(table, branches, apart)
    note = (
        "Tokens for each distinct one: requested; left where a row shares with the row before it "
        "alone; and positions computed, padding included."
    )
    report: dict[str, Any] = {
        "instructions": args.instructions,
        "runs": runs,
        "behind_one_prefix": behind,
    }
    report["useful_share"] = {f"{low}-{high}": share for (low, high), share in shares.items()}
    parts = [table, note, branches, apart]
    write_report(args.out, report, "Rows of many instructions in random order", parts)


if __name__ == "__main__":
    main()
