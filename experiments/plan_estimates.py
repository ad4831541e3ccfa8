"""How near are estimates of memory to what the compiler for TPUs finds?

    pip install -e ".[tpu]"
    python experiments/plan_estimates.py [NUMBER ...]

Plans each setting twice, by estimate and compiled, and writes experiments/results/estimates.md and
estimates.json; with numbers, from 0, those are planned anew and the others kept. Nothing is run on
a TPU, and no weights are read. About fifteen minutes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from plans import GIB, RESULTS, command_of, run
from rich.progress import track

SETTINGS = (
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=16 --batch 16 --remat layer",
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=16 --batch 32 --micro-batches 2 --remat layer",
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=4,tensor=4 --batch 16 --remat layer",
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=16 --batch 16 --remat layer --train lora",
    "llama-3.1-8b --topology v5p:2x4x4 --mesh fsdp=32 --batch 32 --remat dots",
    "llama-3.1-8b --topology v5p:2x4x4 --mesh fsdp=32 --batch 32 --remat none",
    "llama-3.1-70b --topology v5p:4x4x8 --mesh fsdp=128 --batch 128 --remat layer",
    "llama-3.1-70b --topology v5p:4x4x8 --mesh fsdp=32,tensor=4 --batch 128 --micro-batches 2",
    "llama-3.2-1b --topology v5p:2x2x2 --mesh data=8 --batch 8 --remat layer",
    "llama-3.2-1b --topology v5p:2x2x2 --mesh data=2,fsdp=4 --batch 8 --remat layer",
    "llama-3.2-1b --topology v5e:2x4 --mesh fsdp=2,context=4 --batch 8 --remat layer",
    "qwen3-8b --topology v5p:2x2x4 --mesh fsdp=16 --batch 32 --micro-batches 2",
    "qwen3-32b --topology v5p:2x2x4 --mesh fsdp=16 --batch 16 --remat layer",
    "gemma-2-9b --topology v5p:2x2x4 --mesh fsdp=16 --batch 32 --remat layer",
    "mixtral-8x7b --topology v5p:4x4x4 --mesh fsdp=16,expert=4 --batch 64 --remat layer",
    "gpt-oss-20b --topology v5p:4x4x4 --mesh fsdp=16,expert=4 --batch 64 --remat layer",
    "qwen3-30b-a3b --topology v5p:4x4x4 --mesh fsdp=64 --batch 64",
    "llama-3.1-8b --topology v5e:4x4 --mesh fsdp=16 --batch 16 --task score",
    "qwen3-32b --topology v6e:4x4 --mesh fsdp=4,tensor=4 --batch 64 --task score",
)


def compare(words: str, folder: Path) -> dict[str, object]:
    """Bytes of a device, by estimate and compiled."""
    found: dict[str, object] = {"command": command_of(words)}
    for source, more in (("estimated", " --compile 0"), ("compiled", "")):
        plan, _ = run(f"{words} --length 4096{more}", folder)
        if plan["source"] != source or plan["collectives_source"] != source:
            raise SystemExit(f"{words}: not {source}; is libtpu there, and does it fit?")
        found[source] = {"needed": plan["needed_bytes"], **plan["memory_bytes"]}
    return found


def main() -> None:
    kept = RESULTS / "estimates.json"
    known = (
        {each["command"]: each for each in json.loads(kept.read_text())} if kept.exists() else {}
    )
    chosen = [int(number) for number in sys.argv[1:]] or range(len(SETTINGS))
    with tempfile.TemporaryDirectory() as folder:
        for number in track(chosen, "planning"):
            each = compare(SETTINGS[number], Path(folder))
            known[each["command"]] = each
    found = [known[key] for key in map(command_of, SETTINGS) if key in known]
    lines = [
        "# Estimates of memory, and what the compiler finds",
        "",
        "Made by `python experiments/plan_estimates.py`: GiB of a TPU, rows of 4,096 tokens, in",
        "bfloat16. Parameters, optimizer and batch are exact in both; temporaries differ.",
        "",
        "| plan | temporaries, estimated | compiled | all, estimated | compiled | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios = []
    for each in found:
        numbers = [
            each[source][kind] / GIB  # type: ignore[index]
            for kind in ("temporaries", "needed")
            for source in ("estimated", "compiled")
        ]
        ratios.append(numbers[2] / numbers[3])
        words = str(each["command"]).removeprefix("instructjax plan ")
        cells = " | ".join(f"{number:.2f}" for number in (*numbers, ratios[-1]))
        lines.append(f"| `{words}` | {cells} |")
    lines += [
        "",
        f"Of all memory, estimates are {min(ratios):.2f} to {max(ratios):.2f} times what is "
        f"compiled, in the middle {statistics.median(ratios):.2f}.",
        "",
    ]
    (RESULTS / "estimates.md").write_text("\n".join(lines))
    kept.write_text(json.dumps(found, indent=2) + "\n")
    print(lines[-2])


if __name__ == "__main__":
    main()
