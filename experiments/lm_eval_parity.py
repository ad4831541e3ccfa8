"""Are the harness' numbers right? Its tasks through its own `hf` model and through instructjax.

    python experiments/lm_eval_parity.py FOLDER --tasks copa,texts --model HF_FOLDER
    python experiments/lm_eval_parity.py DATA --superni 12 --model HF_FOLDER \\
        --out experiments/results/lm_eval_parity.json

FOLDER holds tasks of lm-evaluation-harness (YAML, with local data); or DATA is a folder of
Super-NaturalInstructions, of which `lm_eval_superni` makes tasks. Both models get the same
weights in float32 and the same requests. Requests of which both score the same ids after the same
ids must agree to 1e-3 nats; those of which they do not are counted by the reason:

- another string: the ids that `hf` scores do not stand for context + continuation;
- white space: `hf` scores white space at the end of the context as the first of y;
- spanned join: `hf` encodes both as one string, and there a token has parts of both;
- logits cache: same ids, but `hf` gives another number without its cache of logits;
- windows: a text needs several, and only the first of `hf` has BOS;
- rounding: a long request, of which the number here is within 1e-3 of `hf`'s network in float64.

Of every request, `hf`'s network is also given the ids that instructjax scores, and must agree.
Exit code 1 if something that must agree does not. Needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval_superni import write_tasks
from rich.console import Console
from rich.table import Table

from instructjax.integrations.lm_eval import InstructJaxLM

LIMIT = 1e-3


class Recorder(InstructJaxLM):
    """Keeps every request with its number and the ids that were scored."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.strings: dict[str, tuple[str, ...]] = {}
        self.found: dict[str, float] = {}
        self.pairs: dict[str, list[tuple[list[int], list[int]]]] = defaultdict(list)
        self._keys: list[str] = []

    def _note(self, requests: Any, answers: Any) -> Any:
        for request, answer in zip(requests, answers, strict=True):
            key = f"{request.task_name} {request.doc_id} {request.idx}"
            self.strings[key] = request.args
            self.found[key] = answer if isinstance(answer, float) else answer[0]
        return answers

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._keys = [f"{r.task_name} {r.doc_id} {r.idx}" for r in requests]
        return self._note(requests, super().loglikelihood(requests, True))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        self._keys = [f"{r.task_name} {r.doc_id} {r.idx}" for r in requests]
        return self._note(requests, super().loglikelihood_rolling(requests, True))

    def _score(self, *args: Any) -> Any:
        for scored in super()._score(*args):
            ids, (start, _) = scored.request.ids.tolist(), scored.request.spans[0]
            self.pairs[self._keys[scored.request.row]].append((ids[:start], ids[start:]))
            yield scored


def run_peer(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """`hf` on the same tasks, in a fresh process."""
    script = Path(__file__).with_name("lm_eval_peer.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps(job), capture_output=True, text=True
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"the comparison did not run:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def explain(lm: Recorder, key: str, peer: dict[str, Any]) -> str:
    """Why `hf` may differ; "" if it must not."""
    ours, theirs, strings = lm.pairs[key], peer["pairs"][key], lm.strings[key]
    if [list(pair) for pair in ours] == theirs:
        uncached = peer["uncached"].get(key, peer["found"][key])
        if abs(peer["found"][key] - uncached) > LIMIT:
            return "logits cache"
        exact = peer["float64"].get(key)
        return "" if exact is None or abs(lm.found[key] - exact) > LIMIT else "rounding"
    if len(strings) == 1:
        return "windows"
    (prompt, response), (context, continuation) = ours[0], theirs[0]
    if not lm.model.tokenizer.decode(context + continuation).endswith("".join(strings)):
        return "another string"
    return "white space" if prompt + response == context + continuation else "spanned join"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="of tasks, or with --superni of data")
    parser.add_argument("--tasks", help="names, with commas")
    parser.add_argument("--superni", type=int, help="make tasks of so many documents each")
    parser.add_argument("--model", required=True, help="a Hugging Face folder or hub id")
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--limit", type=int, help="documents a task")
    parser.add_argument("--apply-chat-template", action="store_true")
    parser.add_argument("--system-instruction")
    parser.add_argument("--max-length", type=int, help="of both models' windows")
    parser.add_argument("--rolling-bos", choices=("every", "first"), default="every")
    parser.add_argument("--batch-size", type=int, default=1, help="of `hf`")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--out", type=Path, help="JSON file to write, and a table beside it (.md)")
    args = parser.parse_args()
    if args.superni:
        made = Path(tempfile.mkdtemp(prefix="lm-eval-superni-"))
        args.tasks = ",".join(write_tasks(Path(args.folder), made, args.superni))
        args.folder = str(made)

    options = {
        "tasks": args.tasks.split(","),
        "num_fewshot": args.num_fewshot,
        "limit": args.limit,
        "apply_chat_template": args.apply_chat_template,
        "system_instruction": args.system_instruction,
    }
    lm = Recorder(
        args.model, dtype="float32", max_length=args.max_length, rolling_bos=args.rolling_bos
    )
    manager = TaskManager(include_path=args.folder, include_defaults=False)
    evaluate: Any = lm_eval.simple_evaluate
    results = evaluate(
        model=lm, task_manager=manager, bootstrap_iters=0, log_samples=False, **options
    )
    peer = run_peer(
        args.python,
        {
            "model": args.model,
            "folder": args.folder,
            "options": options,
            "max_length": lm.max_length,
            "batch_size": args.batch_size,
            "threads": os.cpu_count(),
            "pairs": lm.pairs,
            "found": lm.found,
            "limit": LIMIT,
        },
    )
    if {key: tuple(strings) for key, strings in peer["strings"].items()} != lm.strings:
        raise SystemExit("the two models were not asked the same")

    gaps = {key: abs(value - peer["found"][key]) for key, value in lm.found.items()}
    on_ids = {key: abs(value - peer["on_given_ids"][key]) for key, value in lm.found.items()}
    reasons = {key: explain(lm, key, peer) for key in gaps}
    console = Console(soft_wrap=True)
    lines: list[tuple[str, ...]] = []
    table = Table(title="instructjax against lm-evaluation-harness `hf`, float32, nats a request")
    for name in ("task", "requests", "must agree: gap", "explained: gap", "on our ids"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for task in options["tasks"]:
        keys = [key for key in gaps if key.split()[0] == task]
        gap_by_reason: dict[str, list[float]] = defaultdict(list)
        for key in keys:
            gap_by_reason[reasons[key]].append(gaps[key])
        same = gap_by_reason.pop("", [])
        others = [f"{len(g)} {name}: {max(g):.3e}" for name, g in gap_by_reason.items()]
        cells = (task, f"{len(keys)}", f"{len(same)}: {max(same, default=0):.1e}")
        last = f"{max(on_ids[key] for key in keys):.3e}"
        table.add_row(*cells, "\n".join(others), last)
        lines.append((*cells, ", ".join(others), last))
    console.print(table)
    wrong = {
        key
        for key in gaps
        if (gaps[key] > LIMIT and not reasons[key])
        or (on_ids[key] > LIMIT and abs(lm.found[key] - peer["float64"][key]) > LIMIT)
    }
    for key in sorted(gaps, key=gaps.__getitem__, reverse=True):
        if gaps[key] > LIMIT or key in wrong:
            shown = " | ".join(repr(text[-30:]) for text in lm.strings[key])
            console.print(
                f"{key}: {lm.found[key]:.4f} here, {peer['found'][key]:.4f} in hf "
                f"({peer['on_given_ids'][key]:.4f} on our ids, "
                f"{peer['float64'][key]:.4f} in float64): "
                f"{reasons[key] or 'UNEXPLAINED'}: {shown}",
                markup=False,
                highlight=False,
            )
    summary = (
        f"{len(gaps)} requests, {len(wrong)} wrong; hf's network on our ids differs by "
        f"{max(on_ids.values()):.3e} nats at most, limit {LIMIT:.0e}"
    )
    print(summary)
    if args.out:
        ours, theirs = results["results"], peer["results"]
        report = {
            "summary": summary,
            "limit": LIMIT,
            "versions": {x: metadata.version(x) for x in ("instructjax", "lm_eval", "torch")},
            "results": {t: {"ours": str(r), "hf": theirs[t]} for t, r in ours.items()},
            "requests": {
                key: {
                    "ours": value,
                    "hf": peer["found"][key],
                    "hf_on_our_ids": peer["on_given_ids"][key],
                    "float64": peer["float64"].get(key),
                    "reason": reasons[key],
                }
                for key, value in lm.found.items()
            },
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(describe(lines, summary))
    return int(bool(wrong))


def describe(lines: list[tuple[str, ...]], summary: str) -> str:
    """The table as Markdown."""
    head = ("task", "requests", "must agree: largest gap", "explained: largest gap", "on our ids")
    rows = [head, ("---",) * len(head), *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "# instructjax against lm-evaluation-harness `hf`, float32, nats a request\n\n"
        f"{table}\n\n{summary}. The reasons are explained in\n"
        "`experiments/lm_eval_parity.py`, which made this; every request is in the JSON file.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
