"""Fine-tuning on Super-NaturalInstructions: does held-out log Pr(y | c, z) rise, and where.

Reads a folder with `train/` and `test/`, one JSON Lines file a task, and holds out two cells: new
inputs of the tasks that are learned, and tasks that are not. Then it learns 32 examples by heart:
near-zero loss, and every token of every response is the likeliest one.

    python experiments/finetune_superni.py DATA --out runs/superni

Run again, it goes on where it was. Writes superni_curve.json, .csv and .svg to the results folder.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

import instructjax as ij

NEW_INPUTS, NEW_TASKS = "new_inputs", "new_tasks"


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module's text."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with train/ and test/."""
    out: Path
    """Folder of the runs."""
    results: Path = Path(__file__).parent / "results"
    """Where the numbers and the figure go."""
    model: str = "smollm2-135m-instruct"
    """See `instructjax finetune --help`."""
    steps: int = 64
    """Optimizer steps of the main run."""
    learning_rate: float = 3e-5
    """The highest of the main run."""
    held_out_rows: tuple[int, int] = field(default=(2, 4))
    """Rows of each task that are held out: of those learned, and of the others."""


def main(options: Options) -> None:
    """Runs both parts."""
    paths = split_data(options)
    curve = run_main(options, paths)
    by_heart = learn_by_heart(options, paths)
    write_results(options.results, {"main": curve, "by_heart": by_heart})


def split_data(options: Options) -> dict[str, Path]:
    """Writes what is learned and the two held-out cells; no held-out input is learned."""
    folder = options.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"learned": [], NEW_INPUTS: [], NEW_TASKS: []}
    of_learned, of_others = options.held_out_rows
    for file in sorted((options.data / "train").glob("*.jsonl")):
        task = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        held_out = task[-of_learned:]
        inputs = {row["input"] for row in held_out}
        rows[NEW_INPUTS] += held_out
        rows["learned"] += [row for row in task[:-of_learned] if row["input"] not in inputs]
    for file in sorted((options.data / "test").glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines()[-of_others:]
        rows[NEW_TASKS] += map(json.loads, lines)
    paths = {}
    for name, found in rows.items():
        paths[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def run_main(options: Options, paths: dict[str, Path]) -> dict[str, Any]:
    """Fine-tunes on what is learned, looking at both held-out cells."""
    config = ij.FinetuneConfig(
        data=(paths["learned"],),
        eval_data=(paths[NEW_INPUTS], paths[NEW_TASKS]),
        out=options.out / "main",
        model=options.model,
        row_length=1024,
        rows=2,
        share_prefixes=True,
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=8,
        beta2=0.98,
        final_share=0.1,
        eval_every=max(options.steps // 5, 1),
        checkpoint_every=max(options.steps // 5, 1),
        export="none",
    )
    run(config)
    lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    return {
        "model": options.model,
        "config": [
            line
            for line in (config.out / "config.toml").read_text(encoding="utf-8").splitlines()
            if not line.startswith(("data =", "eval_data =", "out ="))
        ],
        "done": json.loads((config.out / "done.json").read_text(encoding="utf-8")),
        "steps": [
            {name: step.get(name) for name in ("step", "loss", "learning_rate", "grad_norm")}
            for step in steps
            if step["step"]
        ],
        "held_out": [
            {"step": step["step"], **step["held_out"]} for step in steps if "held_out" in step
        ],
    }


def learn_by_heart(options: Options, paths: dict[str, Path]) -> dict[str, Any]:
    """32 examples of 32 tasks, again and again."""
    rows = [json.loads(line) for line in paths["learned"].read_text().splitlines()]
    chosen = list({row["task"]: row for row in rows}.values())[:32]
    data = options.out / "data" / "by_heart.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen))
    config = ij.FinetuneConfig(
        data=(data,),
        out=options.out / "by_heart",
        model=options.model,
        row_length=1024,
        rows=2,
        share_prefixes=True,
        epochs=20,
        learning_rate=1e-4,
        schedule="linear",
        warmup_steps=3,
        beta2=0.98,
        checkpoint_every=20,
        keep=1,
        export="none",
    )
    run(config)
    model = ij.load_trained(config.out)
    examples = [
        ij.Example(instruction=row["definition"], input=row["input"], output=row["outputs"][0])
        for row in chosen
    ]
    scores = ij.score(model, examples)
    greedy = [bool(row.greedy) for row in scores.rows]
    return {
        "examples": len(examples),
        "done": json.loads((config.out / "done.json").read_text(encoding="utf-8")),
        "nats_per_token": -float(sum(scores.log_prob)) / int(sum(scores.num_tokens)),
        "reproduced_greedily": sum(greedy),
    }


def run(config: ij.FinetuneConfig) -> None:
    """Goes through the steps, and says how it goes."""
    start = time.monotonic()
    for report in ij.finetune(config, say=print):
        text = f"step {report.step}/{report.steps} loss {report.loss:.4f}"
        if report.held_out:
            sets = report.held_out.to_json()["by_set"]
            text += "".join(f"  {name} {value:.4f}" for name, value in sets.items())
        print(f"{time.monotonic() - start:7.1f} s  {text}", flush=True)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Numbers and figure."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "instructjax"
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "superni_curve.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    looks = results["main"]["held_out"]
    with (folder / "superni_curve.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["step", "set", "cell", "log_prob_per_token"])
        for look in looks:
            for name, value in look["by_set"].items():
                table.writerow([look["step"], name, "all", f"{value:.6f}"])
                for cell, own in look["by_cell"][name].items():
                    table.writerow([look["step"], name, cell, f"{own:.6f}"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    steps = results["main"]["steps"]
    left.plot([step["step"] for step in steps], [step["loss"] for step in steps], color="0.3")
    left.set(xlabel="step", ylabel="training loss, nats a token")
    for name, label in ((NEW_INPUTS, "new inputs, tasks learned"), (NEW_TASKS, "new tasks")):
        values = [look["by_set"][name] for look in looks]
        right.plot([look["step"] for look in looks], values, marker="o", label=label)
    right.set(xlabel="step", ylabel="held-out log Pr(y | c, z), nats a token")
    right.legend()
    figure.savefig(folder / "superni_curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(tyro.cli(Options))
