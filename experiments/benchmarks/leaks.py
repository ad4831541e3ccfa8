"""How long a leak check takes, and how much memory, from 10^4 to 10^6 rows of made-up text.

    python experiments/benchmarks/leaks.py --out leaks.json
    python experiments/benchmarks/leaks.py --rows 1000000

Rows have 80 words in the mean from a vocabulary of 50,000 with Zipf's frequencies; a fifth of them
is evaluated; one in a thousand of these is planted: a copy of a training row with one word in
twenty replaced. What is found of the planted ones, and how much else is, is told too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from instructjax.generalization.leaks import find_leaks
from instructjax.generalization.text_store import TextStore

VOCABULARY, MEAN_WORDS, CHUNK = 50_000, 80, 10_000


def make_texts(rows: int, seed: int = 0) -> Iterator[str]:
    """Made-up texts, the evaluated fifth last; the planted ones are the first of that."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(share / share.sum())
    words = np.array([f"w{k}" for k in range(VOCABULARY)], object)
    evaluated, sources = rows // 5, []
    planted = max(1, evaluated // 1000)
    made = 0
    while made < rows - planted:
        count = min(CHUNK, rows - planted - made)
        lengths = rng.poisson(MEAN_WORDS, count) + 1
        ids = np.minimum(np.searchsorted(cumulative, rng.random(lengths.sum())), VOCABULARY - 1)
        for text in np.split(ids, np.cumsum(lengths)[:-1]):
            if len(sources) < planted:
                sources.append(text)
            yield " ".join(words[text])
        made += count
    for source in sources:
        copy = source.copy()
        replaced = rng.random(len(copy)) < 0.05
        copy[replaced] = rng.integers(0, VOCABULARY, replaced.sum())
        yield " ".join(words[copy])


def measure(rows: int) -> dict[str, float]:
    """Seconds, memory and what was found, for so many rows."""
    with TextStore(make_texts(rows)) as texts:
        evaluated = rows // 5
        planted = max(1, evaluated // 1000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, cpu = time.perf_counter(), time.process_time()
        found = find_leaks(texts, np.arange(rows - evaluated, rows), np.arange(rows - evaluated))
        hits = {leak.text for leak in found.leaks}
        return {
            "rows": rows,
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "peak_mb_before": before,
            "planted": planted,
            "planted_found": len(hits & set(range(rows - planted, rows))),
            "others_found": len(hits - set(range(rows - planted, rows))),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures each number of rows in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args(argv)
    if options.child:
        print(json.dumps(measure(options.rows[0])))
        return
    results = []
    for rows in options.rows:
        command = [sys.executable, __file__, "--child", "--rows", str(rows)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        results.append(found)
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(write_table(results), end="")
    if options.out is not None:
        options.out.with_suffix(".md").write_text(write_table(results))


def write_table(results: Sequence[dict[str, float]]) -> str:
    """What was measured, as Markdown."""
    names = ("rows", "s", "processor s", "peak MB", "before", "planted", "found", "others found")
    lines = [
        "A leak check of made-up rows of 80 words, a fifth evaluated, near duplicates planted "
        "(`experiments/benchmarks/leaks.py`)",
        "",
        f"| {' | '.join(names)} |",
        f"|{' ---: |' * len(names)}",
    ]
    lines += [f"| {' | '.join(f'{value:,.0f}' for value in row.values())} |" for row in results]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
