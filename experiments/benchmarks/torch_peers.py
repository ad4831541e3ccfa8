"""The tools compared with, in a process of their own: reads requests from stdin, writes JSON.

Every tool gets the same token ids and the same weights (the GGUF file, through transformers'
own reader), float32 unless the job says otherwise, and its best of several batch sizes counts.
What PyTorch's bare matmul reaches is measured beside them: it says how fast they could be here.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


def load(gguf: str, threads: int, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    folder, _, name = gguf.rpartition("/")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.to(getattr(torch, dtype)).eval(), tokenizer


def run_lm_eval(model, tokenizer, pairs, batch_size: int) -> list[float]:
    """lm-evaluation-harness `hf`, given ids so that it scores the same tokens."""
    from lm_eval.models import huggingface

    make_lm: Any = huggingface.HFLM
    lm = make_lm(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [((f"{i}", ""), prompt, response) for i, (prompt, response) in enumerate(pairs)]
    return [answer[0] for answer in lm._loglikelihood_tokens(requests, disable_tqdm=True)]


def run_transformers(model, tokenizer, pairs, batch_size: int) -> list[list[float]]:
    """transformers alone: sorted by length, right-padded, log-softmax of the response only.

    Returns the log-prob of every token of every response.
    """
    import torch

    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    scores: list[list[float]] = [[] for _ in pairs]
    with torch.no_grad():
        for at in range(0, len(order), batch_size):
            members = order[at : at + batch_size]
            width = max(sum(map(len, pairs[i])) for i in members)
            ids = torch.zeros(len(members), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(members):
                sequence = pairs[i][0] + pairs[i][1]
                ids[row, : len(sequence)] = torch.tensor(sequence)
                mask[row, : len(sequence)] = 1
            logits = model(ids, attention_mask=mask).logits
            for row, i in enumerate(members):
                prompt, response = pairs[i]
                span = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
                table = logits[row, span].log_softmax(-1)
                scores[i] = table.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()
    return scores


def bare_matmul_flops(shapes: list[list[int]], rows: int, *, repeats: int = 7) -> float:
    """FLOP/s of products of `rows` tokens with matrices of these shapes, each alone, in float32."""
    import torch

    seconds = 0.0
    for inner, outer in shapes:
        x, w = torch.randn(rows, inner), torch.randn(outer, inner)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            times.append(time.perf_counter() - start)
        seconds += statistics.median(times)
    return 2 * rows * sum(inner * outer for inner, outer in shapes) / seconds


TOOLS = {"lm-evaluation-harness hf": run_lm_eval, "transformers": run_transformers}


def main() -> None:
    job = json.load(sys.stdin)
    model, tokenizer = load(job["gguf"], job["threads"], job["dtype"])
    matmul = bare_matmul_flops(job["shapes"], job["rows"])
    results = []
    for name in job["tools"]:
        for batch_size in job["batch_sizes"]:
            start = time.perf_counter()
            scores = TOOLS[name](model, tokenizer, job["pairs"], batch_size)
            seconds = time.perf_counter() - start
            results.append(
                {"tool": name, "batch_size": batch_size, "seconds": seconds, "scores": scores}
            )
    print("RESULT " + json.dumps({"results": results, "bare_matmul_flops": matmul}))


if __name__ == "__main__":
    main()
