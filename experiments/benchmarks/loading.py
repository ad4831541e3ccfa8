"""Loading measured: time, and peak memory over the size of the weights, one process each.

    python experiments/benchmarks/loading.py [--out experiments/results/loading.json]

The embedded default model from its GGUF file, from a Hugging Face folder (one file, and shards),
in float32 and bfloat16, onto one device and onto a mesh of four, and the GGUF path of transformers.
Imports are done before the clock starts. Memory is how far the process's peak lies above what it
had then, and takes in the weights themselves and the tokenizer; what lies beyond the weights is to
be held against the largest tensor. Linux. Transformers needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MODEL = "smollm2-135m-instruct"


def memory(what: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far (`man proc_pid_status`)."""
    # ru_maxrss would do, but a process begins with that of the one it was started by.
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if what in line)


def measure(how: str, source: str, dtype: str) -> dict[str, float]:
    """In this process: seconds, and bytes of memory and of weights."""
    if how == "transformers":
        import gguf  # noqa: F401 - it imports it while it loads
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        def by_transformers() -> Any:
            path = Path(source)
            kind = getattr(torch, dtype)
            args = {"gguf_file": path.name}
            AutoTokenizer.from_pretrained(str(path.parent), **args)
            return AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=kind, **args)

        load = by_transformers
    else:
        import jax
        from transformers import AutoTokenizer, PreTrainedConfig  # noqa: F401 - a part of our import

        import instructjax as ij
        import instructjax.models.load
        from instructjax.sharding import make_mesh

        devices = 4 if "mesh" in how else 1
        jax.config.update("jax_num_cpu_devices", devices)
        jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))

        def by_instructjax() -> Any:
            mesh = make_mesh(f"fsdp={devices}") if "mesh" in how else None
            return ij.load_model(source, dtype=dtype, mesh=mesh)

        load = by_instructjax

    before = memory("VmRSS")
    start = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    if how == "transformers":
        size = sum(p.numel() * p.element_size() for p in model.parameters())
    else:
        import jax

        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
        # Of a vector, every device of a mesh has a copy.
        shards = [s for leaf in jax.tree.leaves(model.params) for s in leaf.addressable_shards]
        size = max(size, sum(shard.data.nbytes for shard in shards))
    return {"seconds": seconds, "peak_bytes": peak, "weight_bytes": size}


def main() -> None:
    """Measures each way of loading, prints a table, writes a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/loading.json"))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return

    import instructjax as ij
    from instructjax.models.checkpoints.export import export_folder
    from instructjax.models.load import load_checkpoint

    path = str(load_checkpoint(MODEL, dtype="bfloat16").source)
    with tempfile.TemporaryDirectory() as scratch:
        model = ij.load_model(MODEL)
        one, many = Path(scratch) / "one", Path(scratch) / "many"
        export_folder(model, one)
        export_folder(model, many, max_shard_bytes=100_000_000)
        half = export_folder(ij.load_model(MODEL, dtype="bfloat16"), Path(scratch) / "half")
        largest = model.params["embed"]["embedding"].nbytes  # of those of the file
        del model
        ways = [
            ("GGUF", "instructjax", path, "float32"),
            ("GGUF", "instructjax", path, "bfloat16"),
            ("folder, float32", "instructjax", str(one), "float32"),
            ("folder, float32", "instructjax, mesh of 4", str(one), "float32"),
            ("folder, float32, shards of 100 MB", "instructjax", str(many), "float32"),
            ("folder, bfloat16", "instructjax", str(half), "bfloat16"),
            ("GGUF", "transformers", path, "float32"),
        ]
        rows = []
        for what, how, source, dtype in ways:
            command = [sys.executable, __file__, "--measure", how, source, dtype]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found: dict[str, Any] = json.loads(out.splitlines()[-1])
            beyond = found["peak_bytes"] - found["weight_bytes"]
            rows.append({"from": what, "by": how, "dtype": dtype, **found, "bytes_beyond": beyond})
    table = Table("from", "by", "into", "seconds", "weights, MB", "peak, MB", "beyond, MB")
    for row in rows:
        table.add_row(
            row["from"],
            row["by"],
            row["dtype"],
            f"{row['seconds']:.1f}",
            f"{row['weight_bytes'] / 1e6:,.0f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['bytes_beyond'] / 1e6:,.0f}",
        )
    Console(width=110).print(table)
    result = {"model": MODEL, "largest_tensor_bytes": largest, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
