"""Plans of real models on TPU slices and GPU nodes, made without any: each one's time and memory.

    pip install -e ".[tpu,cuda-compiler]"
    python experiments/plans.py [NUMBER ...]

Writes experiments/results/plans.md and plans.json; with numbers, from 0, those plans are made anew
and the others kept. Each plan is a process of its own, as it is for a
person who asks for one. Nothing is run on a TPU or GPU, and no weights are read.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PLANS = (
    "llama-3.1-8b --topology v5e:16x16 --mesh fsdp=64,tensor=4 --batch 256 --length 4096 "
    "--remat layer",
    "llama-3.1-8b --topology v5p:2x4x4 --mesh fsdp=32 --batch 64 --length 4096 --remat layer",
    "llama-3.1-70b --topology v5p:4x4x4 --mesh fsdp=64 --batch 64 --length 4096 --remat layer",
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=16 --batch 64 --length 4096 --remat layer",
    "llama-3.1-8b --topology v5e:16x16 --slices 2 --mesh data=2,fsdp=64,tensor=4 --batch 512 "
    "--length 4096 --remat layer",
    "llama-3.1-8b --topology tpu7x:2x2x1 --mesh fsdp=8 --batch 8 --length 4096 --train lora "
    "--remat layer",
    "qwen3-32b --task score --topology v6e:4x4 --mesh fsdp=4,tensor=4 --batch 64 --length 2048",
    "llama-3.1-8b --topology v4:2x4x4 --mesh fsdp=32 --batch 32 --length 4096 --remat layer",
    "llama-3.1-8b --topology a100:2x8 --mesh fsdp=16 --batch 32 --length 4096 --remat layer",
    "llama-3.1-8b --topology h100:8x8 --mesh fsdp=32,tensor=2 --batch 128 --length 4096 "
    "--remat layer",
    "mixtral-8x7b --topology b200:8 --mesh fsdp=4,expert=2 --batch 8 --length 4096 --remat layer",
)
GIB = 1 << 30


def run(words: str, folder: Path) -> tuple[dict[str, Any], str]:
    """A plan's numbers, with what making it took, and what it printed."""
    out, log = folder / "plan.json", folder / "plan.txt"
    command = [sys.executable, "-m", "instructjax", "plan", *words.split(), "--json", str(out)]
    start = time.monotonic()
    with log.open("wb") as stream:
        to = [(os.POSIX_SPAWN_DUP2, stream.fileno(), 1)]
        env = {**os.environ, "COLUMNS": "80"}
        child = os.posix_spawn(command[0], command, env, file_actions=to)
        _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"instructjax plan {words}: failed")
    scale = 1 if sys.platform == "darwin" else 1024
    took = {
        "command": command_of(words),
        "wall_seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_host_bytes": usage.ru_maxrss * scale,
    }
    return {**took, **json.loads(out.read_text())}, log.read_text()


def summarize(plans: list[dict[str, Any]]) -> list[str]:
    """The lines of a table with a row a plan."""
    lines = [
        "| model, task | devices | mesh, rows x tokens | GiB a device | seconds a step | bound by "
        "| made in (processor time) | host memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for plan in plans:
        mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items())
        fits = "fits" if plan["fits"] else "**does not fit**"
        capacity = plan["capacity_bytes"] / GIB
        speed, bound = "-", "-"
        if plan["fits"]:
            speed = f"{plan['seconds_at_best']:.2f} to {plan['seconds_at_worst']:.2f}"
            bound = f"{plan['bound']}, {plan['utilization_at_best']:.0%} of peak"
        lines.append(
            f"| {plan['model']}, {plan['task']}{' LoRA' if plan['lora'] else ''} "
            f"| {plan['topology']} | {mesh}; {plan['batch']} x {plan['length']} "
            f"| {plan['needed_bytes'] / GIB:.1f} of {capacity:.2f}: {fits} "
            f"| {speed} | {bound} | {plan['wall_seconds']:.0f} s ({plan['cpu_seconds']:.0f} s) "
            f"| {plan['peak_host_bytes'] / GIB:.2f} GiB |"
        )
    return lines


def main() -> None:
    kept = RESULTS / "plans.json"
    known = (
        {plan["command"]: plan for plan in json.loads(kept.read_text())} if kept.exists() else {}
    )
    chosen = [int(number) for number in sys.argv[1:]] or range(len(PLANS))
    with tempfile.TemporaryDirectory() as folder:
        for number in chosen:
            plan, text = run(PLANS[number], Path(folder))
            if plan["source"] != "compiled":
                raise SystemExit("no compiler: pip install -e '.[tpu,cuda-compiler]'")
            print(text, flush=True)
            known[plan["command"]] = {**plan, "printed": text.rstrip()}
            write([known[key] for key in map(command_of, PLANS) if key in known])


def command_of(words: str) -> str:
    return f"instructjax plan {words}"


def write(plans: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    printed = [f"```\n$ {plan['command']}\n{plan['printed']}\n```\n" for plan in plans]
    head = [
        "# Plans without hardware",
        "",
        "Made by `python experiments/plans.py`: each is compiled for its devices, by libtpu or by",
        "XLA for CUDA down to machine code, on CPUs, and nothing is run. Memory and what devices",
        "say are the compiler's, operations are counted from shapes, bytes moved are estimated;",
        "times are the least that the chips' rates allow, from all at once to one after the other.",
        "",
        *summarize(plans),
        "",
    ]
    (RESULTS / "plans.md").write_text("\n".join(head) + "\n" + "\n".join(printed))


if __name__ == "__main__":
    main()
